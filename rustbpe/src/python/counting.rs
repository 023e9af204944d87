//! Counting the words of an iterator: Python's thread collects a buffer while another counts the one before.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyIterator;

use super::texts::each_text;
use crate::{Corpus, Error};

/// Texts are handed to the counting threads after this many bytes, even when the buffer's count is not reached.
const BUFFER_BYTES: usize = 16 << 20;
/// Time between two looks at Ctrl-C while the counting threads are waited for.
const WAIT: Duration = Duration::from_millis(1);

/// Add all texts of the iterator. Never more than two buffers are held.
pub(super) fn count_iterator(
    py: Python<'_>,
    iterator: &Bound<'_, PyIterator>,
    buffer_size: usize,
    mut corpus: Corpus,
) -> PyResult<Corpus> {
    let (sender, receiver): (SyncSender<Vec<String>>, Receiver<Vec<String>>) = sync_channel(0);
    let stop = corpus.stop_flag();
    std::thread::scope(|scope| {
        let counting: ScopedJoinHandle<'_, Result<Corpus, Error>> = scope.spawn(move || {
            for texts in receiver {
                corpus.add(&texts)?;
            }
            Ok(corpus)
        });
        let mut collected = collect(py, iterator, buffer_size, &sender);
        drop(sender);
        while collected.is_ok() && !counting.is_finished() {
            collected = wait(py);
        }
        if collected.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        let counted = py.detach(|| counting.join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // The iterator's own error comes first: it is what the caller has to repair.
        collected?;
        Ok(counted?)
    })
}

/// Send the iterator's texts in buffers. Ends early when the counting thread has given up: its error tells why.
fn collect(
    py: Python<'_>,
    iterator: &Bound<'_, PyIterator>,
    buffer_size: usize,
    sender: &SyncSender<Vec<String>>,
) -> PyResult<()> {
    let mut buffer = Vec::new();
    let mut bytes = 0;
    let mut listening = true;
    for item in iterator.clone() {
        py.check_signals()?;
        each_text(&item?, &mut |text| {
            let Some(text) = text else { return Ok(()) };
            let text = text.into_string();
            bytes += text.len();
            buffer.push(text);
            if buffer.len() >= buffer_size || bytes >= BUFFER_BYTES {
                bytes = 0;
                listening = listening && send(py, std::mem::take(&mut buffer), sender)?;
            }
            Ok(())
        })?;
        if !listening {
            return Ok(());
        }
    }
    send(py, buffer, sender).map(|_| ())
}

/// Whether the counting thread has taken the buffer; it has not when it has given up.
fn send(py: Python<'_>, mut buffer: Vec<String>, sender: &SyncSender<Vec<String>>) -> PyResult<bool> {
    loop {
        match sender.try_send(buffer) {
            Ok(()) => return Ok(true),
            Err(TrySendError::Disconnected(_)) => return Ok(false),
            Err(TrySendError::Full(refused)) => buffer = refused,
        }
        wait(py)?;
    }
}

/// Let other threads run, and look whether the user wants to stop.
fn wait(py: Python<'_>) -> PyResult<()> {
    py.detach(|| std::thread::sleep(WAIT));
    py.check_signals()
}
