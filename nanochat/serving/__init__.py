"""The server's room: `app` (routes), `protocol` (shapes), `pool` (one engine per device) and the `page/`."""
