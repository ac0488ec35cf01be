//! The process itself: what it may do, what it may use, where its own files are, its signals, and
//! what it says.
//!
//! - [`kernel`]: which one it runs on;
//! - [`time_namespace`]: whether userspace and BPF programs read the same clock;
//! - [`privilege`]: the capabilities that `run` needs, and giving up all others;
//! - [`limits`]: open files and locked memory;
//! - [`runtime_dir`]: the directory of the control socket and of what is to be put back;
//! - [`signals`]: SIGTERM and the like, also while it starts;
//! - [`log`]: messages on standard error, without waiting for their reader;
//! - [`terminal`]: text without control characters;
//! - [`threads`]: how they end.

pub mod kernel;
pub mod limits;
pub mod log;
pub mod privilege;
pub mod runtime_dir;
pub mod signals;
pub mod terminal;
pub mod threads;
pub mod time_namespace;
