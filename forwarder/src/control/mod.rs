//! The control thread's side: what it asks of the kernel, and what it tells the workers.

pub mod punt;
pub mod xdp;
