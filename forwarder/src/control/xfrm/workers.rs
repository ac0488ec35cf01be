//! From an SA with its keys to one that workers use, whether the kernel or a file has it.

use std::sync::Arc;

use ring::rand::{SecureRandom, SystemRandom};

use super::ae::KernelReplay;
use super::store::{Record, SEED_LEN};
use crate::ipsec::{
    BadState, Direction, InboundState, IvSeed, Keys, Mode, OutboundState, StateConfig,
};

/// An SA that workers can use.
#[derive(Debug)]
pub enum WorkersState {
    /// For receiving.
    Inbound(Arc<InboundState>),
    /// For sending. No sequence numbers are reserved yet.
    Outbound(Arc<OutboundState>),
}

/// Why workers cannot use an SA. `None`: they can.
pub fn obstacle(config: &StateConfig) -> Option<String> {
    let is_transport = config.mode != Mode::Tunnel;
    is_transport
        .then(|| "transport mode".to_owned())
        .or_else(|| (config.mark.mask != 0).then(|| "a mark".to_owned()))
        .or_else(|| {
            let selector = &config.selector;
            let sees_upper = selector.proto != 0 || selector.sport.1 | selector.dport.1 != 0;
            sees_upper.then(|| "a selector with a protocol or ports".to_owned())
        })
}

/// Why workers cannot use an SA whose xfrm interface they do not use.
pub fn no_interface(if_id: u32) -> String {
    format!("if_id {if_id:#x}, and userspace uses no xfrm interface with that")
}

/// Checks what the IPsec library requires of an SA: the length of its keys, its replay window, its addresses.
///
/// # Errors
/// What the library does not accept.
pub fn check(
    config: &StateConfig,
    keys: &Keys,
    direction: Option<Direction>,
) -> Result<(), BadState> {
    let mut config = config.clone();
    if direction == Some(Direction::Out) {
        // Outbound SAs need no window, whereas inbound ones with ESN do.
        config.replay_window = config.replay_window.max(1);
    }
    InboundState::new(config, keys).map(drop)
}

/// Makes the SA. `direction`: if it was added with one; `replay`: its sequence numbers; `is_local`: its destination is an
/// address of the router.
///
/// # Errors
/// Why workers cannot use it.
pub fn make(
    config: StateConfig,
    keys: &Keys,
    direction: Option<Direction>,
    replay: &KernelReplay,
    is_local: bool,
) -> Result<WorkersState, String> {
    check_direction(direction, is_local)?;
    if is_local {
        let mut state = InboundState::new(config, keys).map_err(|error| error.to_string())?;
        state.replay_mut().restore(replay.seq, |back| replay.is_received(back));
        return Ok(WorkersState::Inbound(Arc::new(state)));
    }
    let mut seed = [0; SEED_LEN];
    SystemRandom::new().fill(&mut seed).map_err(|_| "no random numbers for IVs".to_owned())?;
    outbound(config, keys, seed, replay.oseq)
}

/// The same with what a file has stored for its keys: IVs that go on with the same seed, and a replay window in which all
/// up to the last packet that was received before has been received.
///
/// # Errors
/// Why workers cannot use it.
pub fn make_stored(
    config: StateConfig,
    keys: &Keys,
    direction: Option<Direction>,
    record: &Record,
    is_local: bool,
) -> Result<WorkersState, String> {
    check_direction(direction, is_local)?;
    if is_local {
        let mut state = InboundState::new(config, keys).map_err(|error| error.to_string())?;
        state.replay_mut().restore(record.received, |_| true);
        return Ok(WorkersState::Inbound(Arc::new(state)));
    }
    outbound(config, keys, *record.seed, record.sent)
}

/// `sent`: the last number that may have been sent.
fn outbound(
    config: StateConfig,
    keys: &Keys,
    seed: [u8; SEED_LEN],
    sent: u64,
) -> Result<WorkersState, String> {
    let state = OutboundState::new(config, keys, IvSeed::random(seed), sent.saturating_add(1));
    Ok(WorkersState::Outbound(Arc::new(state.map_err(|error| error.to_string())?)))
}

fn check_direction(direction: Option<Direction>, is_local: bool) -> Result<(), String> {
    match (direction, is_local) {
        (Some(Direction::Out), true) => Err("dir out to an address of the router".to_owned()),
        (Some(Direction::In), false) => Err("dir in to another host".to_owned()),
        _ => Ok(()),
    }
}
