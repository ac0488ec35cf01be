//! The process: its privileges, limits, files, signals and messages.
//!
//! - [`kernel`]: the version of the running kernel;
//! - [`time_namespace`]: whether userspace and BPF programs read the same clock;
//! - [`privilege`]: the capabilities that `run` needs, and dropping all others;
//! - [`limits`]: open files and locked memory;
//! - [`runtime_dir`]: the directory of the control socket and of saved device settings;
//! - [`sandbox`]: seccomp and Landlock;
//! - [`signals`]: SIGTERM, SIGINT and SIGHUP, also during the start;
//! - [`log`]: messages on standard error, without waiting for their reader;
//! - [`notify`]: messages to the service manager;
//! - [`terminal`]: text without control characters;
//! - [`threads`]: joining threads with a timeout.

pub mod kernel;
pub mod limits;
pub mod log;
pub mod notify;
pub mod privilege;
pub mod runtime_dir;
pub mod sandbox;
pub mod signals;
pub mod terminal;
pub mod threads;
pub mod time_namespace;
