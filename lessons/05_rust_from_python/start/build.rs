//! macOS wants to be told that Python's functions will be found later; maturin does this by itself.

fn main() {
    pyo3_build_config::add_extension_module_link_args();
}
