//! Metrics over HTTP, for Prometheus, and a page with live figures: `run --metrics`.
//!
//! - [`reading`]: what is read of the daemon;
//! - [`catalog`]: every metric, with its meaning; [`samples`]: a reading as samples; [`text`]: samples as text;
//! - [`page`]: the page; [`view`]: a reading as JSON, which it shows;
//! - [`listen`]: the socket; [`server`]: the HTTP server.
//!
//! The server has one thread, and a second one that reads. It gets its data as other clients do, from the last snapshot of
//! the control thread and from shared counters, and does not make the control thread or a worker wait: the control thread is not asked
//! at all, and each worker at most twice a second, for the statistics of its sockets. However many clients there are, they share a reading.

pub mod catalog;
pub mod listen;
mod page;
pub mod reading;
pub mod samples;
pub mod server;
pub mod text;
pub mod view;

use std::time::Duration;

pub use listen::{MetricsError, MetricsSocket};
pub use reading::{Reading, Source};
pub use server::MetricsServer;

/// Shortest time between two readings. Scrapes in between get the last one.
pub const READING_INTERVAL: Duration = Duration::from_millis(500);
