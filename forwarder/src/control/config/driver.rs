//! What a driver can do of what the user asks for.

use super::Mode;
use crate::io::DriverKind;
use crate::io::af_xdp::OpenError;
use crate::worker::poll::PollMode;

/// Whether a driver is in this program and can do what is asked of it.
///
/// # Errors
/// Says what to use instead.
pub(super) fn check(driver: DriverKind, mode: Mode, poll: PollMode) -> Result<(), String> {
    if !driver.is_built() {
        return Err(OpenError::NoXskRs.to_string());
    }
    if driver == DriverKind::AfXdp {
        return Ok(());
    }
    if mode == Mode::Zerocopy {
        return Err(format!(
            "the driver {driver} binds in copy mode only: use --mode auto or copy, or --driver af_xdp"
        ));
    }
    if poll == PollMode::Busy {
        return Err(format!(
            "the driver {driver} has no busy polling: use --poll adaptive, or --driver af_xdp"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_xsk_rs_cannot_do_is_refused() {
        let check = |mode, poll| check(DriverKind::XskRs, mode, poll);
        if !DriverKind::XskRs.is_built() {
            let error = check(Mode::Auto, PollMode::Adaptive).expect_err("is not built");
            assert!(error.contains("--features xsk-rs"), "{error}");
            return;
        }
        assert_eq!(check(Mode::Auto, PollMode::Interrupt), Ok(()));
        let error = check(Mode::Zerocopy, PollMode::Adaptive).expect_err("copies");
        assert!(error.contains("copy mode only"), "{error}");
        let error = check(Mode::Copy, PollMode::Busy).expect_err("has no busy polling");
        assert!(error.contains("--poll adaptive"), "{error}");
    }

    #[test]
    fn our_own_driver_can_do_everything() {
        assert_eq!(check(DriverKind::AfXdp, Mode::Zerocopy, PollMode::Busy), Ok(()));
    }
}
