//! Checks that the selected driver supports the requested modes.

use super::Mode;
use crate::io::DriverKind;
use crate::io::af_xdp::OpenError;
use crate::worker::poll::PollMode;

/// Checks that a driver is built into this program and supports the mode and the polling requested.
///
/// # Errors
/// The option that is not supported, and what to use instead.
pub(super) fn check(driver: DriverKind, mode: Mode, poll: PollMode) -> Result<(), String> {
    if !driver.is_built() {
        return Err(OpenError::NoXskRs.to_string());
    }
    if driver == DriverKind::AfXdp {
        return Ok(());
    }
    if mode == Mode::Zerocopy {
        return Err(format!(
            "the driver {driver} supports copy mode only: use --mode auto or copy, or --driver af_xdp"
        ));
    }
    if poll == PollMode::Busy {
        return Err(format!(
            "the driver {driver} does not support busy polling: use --poll adaptive, or --driver af_xdp"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_xsk_rs_does_not_support_are_refused() {
        let check = |mode, poll| check(DriverKind::XskRs, mode, poll);
        if !DriverKind::XskRs.is_built() {
            let error = check(Mode::Auto, PollMode::Adaptive).expect_err("is not built");
            assert!(error.contains("--features xsk-rs"), "{error}");
            return;
        }
        assert_eq!(check(Mode::Auto, PollMode::Interrupt), Ok(()));
        let error = check(Mode::Zerocopy, PollMode::Adaptive).expect_err("copies");
        assert!(error.contains("copy mode only"), "{error}");
        let error = check(Mode::Copy, PollMode::Busy).expect_err("does not support busy polling");
        assert!(error.contains("--poll adaptive"), "{error}");
    }

    #[test]
    fn our_own_driver_supports_all_options() {
        assert_eq!(check(DriverKind::AfXdp, Mode::Zerocopy, PollMode::Busy), Ok(()));
    }
}
