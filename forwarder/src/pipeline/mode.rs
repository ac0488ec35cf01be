//! What the data path is compiled for: it is chosen once per burst, so that packets pay for nothing that is off.

/// One of [`Plain`], [`Hooked`], [`Traced`].
pub(super) trait Mode {
    /// There may be hook functions.
    const HOOKED: bool;
    /// Packets may be traced.
    const TRACED: bool;
}

/// Without hook functions.
#[derive(Debug)]
pub(super) struct Plain;

impl Mode for Plain {
    const HOOKED: bool = false;
    const TRACED: bool = false;
}

/// With hook functions.
#[derive(Debug)]
pub(super) struct Hooked;

impl Mode for Hooked {
    const HOOKED: bool = true;
    const TRACED: bool = false;
}

/// With traces, and with hook functions if there are any.
#[derive(Debug)]
pub(super) struct Traced;

impl Mode for Traced {
    const HOOKED: bool = true;
    const TRACED: bool = true;
}
