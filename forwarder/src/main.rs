//! The `ferroute` program.

fn main() {}
