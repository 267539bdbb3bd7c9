//! Loads, checks, limits and calls plugins: WebAssembly components in wasmtime. Knows the WIT types, and nothing of sessions.
