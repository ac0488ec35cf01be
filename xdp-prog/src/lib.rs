//! What the XDP program and userspace share: map names and `#[repr(C)]` layouts.

#![no_std]
