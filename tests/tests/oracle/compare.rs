//! Sends the same packets into two worlds and compares their output octet by octet.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use ferroute_tests::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, be16, describe};
use ferroute_tests::rng::Rng;
use ferroute_tests::tap;

use crate::input::{Input, is_from_router, is_made_by_router, number};
use crate::normalise::normalise;
use crate::world::{Side, World};
use crate::{generate4, generate6};

/// Packets sent before their output is awaited; two of them are plain.
const BATCH: usize = 64;
/// After this many differences more would show nothing new.
const DIFFERENCES_MAX: usize = 200;
/// Time-out of a batch once another has differed.
const SHORT_TIMEOUT: Duration = Duration::from_millis(500);
/// Time for late frames that only one of the worlds sends.
const LATE_TIMEOUT: Duration = Duration::from_millis(500);

const BROADCAST: [u8; 6] = [0xff; 6];

/// Frames by the number of the packet that caused them.
type Outputs = BTreeMap<u16, Vec<(Side, Vec<u8>)>>;

/// Results of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Packets sent into each world.
    pub sent: usize,
    /// How many of them the first world forwarded, answered with an error or an echo, or dropped.
    pub forwarded: usize,
    pub answered: usize,
    pub silent: usize,
    /// For each packet whose output differs, its special features and a description.
    pub differences: Vec<(String, String)>,
}

/// `count` packets of a seed, each batch ending with two plain ones.
pub fn generate(seed: u64, count: usize) -> Vec<Input> {
    generate_from(1, seed, count)
}

/// The same, numbered from `first`.
pub fn generate_from(first: u16, seed: u64, count: usize) -> Vec<Input> {
    let mut rng = Rng::new(seed);
    let packet = |at: usize| {
        let index = first + at as u16;
        match at % BATCH {
            62 => generate4::plain(index),
            63 => generate6::plain(index),
            _ if rng.one_in(2) => generate4::generate(&mut rng, index),
            _ => generate6::generate(&mut rng, index),
        }
    };
    (0..count.next_multiple_of(BATCH)).map(packet).collect()
}

/// Sends `inputs` into both worlds; waits up to `timeout` for each batch's output to be equal.
pub fn compare(one: &World, other: &World, inputs: &[Input], timeout: Duration) -> Result<Outcome> {
    let mut outputs = [Outputs::new(), Outputs::new()];
    let worlds = [one, other];
    let (mut differing, mut timeout) = (0, timeout);
    for batch in inputs.chunks(BATCH) {
        for world in worlds {
            for input in batch {
                world.tap(input.side).send(&input.frame)?;
            }
        }
        if !settled(worlds, batch, &mut outputs, timeout) {
            // It is not the machine that is slow: the next wait may be shorter.
            timeout = timeout.min(SHORT_TIMEOUT);
            differing += batch.iter().filter(|i| !agree(&outputs, i.index)).count();
        }
        if differing >= DIFFERENCES_MAX {
            break;
        }
    }
    let end = Instant::now() + LATE_TIMEOUT;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        collect(worlds, &mut outputs, left);
    }
    Ok(judge(inputs, &outputs))
}

/// Collects until both worlds have the same output for the batch. Returns false if they do not in time.
fn settled(
    worlds: [&World; 2],
    batch: &[Input],
    outputs: &mut [Outputs; 2],
    timeout: Duration,
) -> bool {
    let end = Instant::now() + timeout;
    let plain = batch.iter().filter(|input| input.note == "plain");
    loop {
        collect(worlds, outputs, Duration::from_millis(5));
        let through = plain.clone().all(|input| outputs[0].contains_key(&input.index));
        if through && batch.iter().all(|input| agree(outputs, input.index)) {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
    }
}

/// Collects the output of both worlds, waiting at most `timeout`.
fn collect(worlds: [&World; 2], outputs: &mut [Outputs; 2], timeout: Duration) {
    let [one, other] = worlds;
    tap::wait(&[&one.left, &one.right, &other.left, &other.right], timeout);
    for (world, outputs) in worlds.iter().zip(outputs) {
        for side in [Side::Left, Side::Right] {
            while let Some(frame) = world.tap(side).receive() {
                if let Some(index) = consequence(&frame) {
                    let frames = outputs.entry(index).or_default();
                    frames.push((side, normalise(frame)));
                    frames.sort();
                }
            }
        }
    }
}

/// The packet that caused a frame; 0 if it cannot be identified, but must still be the same.
///
/// Left out is the router's own traffic: ARP, neighbour discovery (including redirects, which the kernel
/// limits to one per second), multicast listener reports. ICMP errors to a broadcast address are left out as
/// well, see `normalise`.
fn consequence(frame: &[u8]) -> Option<u16> {
    if !is_from_router(frame) {
        return None;
    }
    let chatter = match be16(frame, 12) {
        Some(ETHERTYPE_IPV4) => is_made_by_router(frame) && frame[..6] == BROADCAST,
        Some(ETHERTYPE_IPV6) => {
            // Listener reports have a hop-by-hop header with the router alert.
            let (next, kind) = (frame.get(20), frame.get(54));
            is_made_by_router(frame)
                && (next == Some(&0)
                    || next == Some(&58) && kind.is_some_and(|k| (133..=137).contains(k)))
        }
        _ => true,
    };
    if chatter { None } else { Some(number(frame).unwrap_or(0)) }
}

fn agree(outputs: &[Outputs; 2], index: u16) -> bool {
    outputs[0].get(&index) == outputs[1].get(&index)
}

fn judge(inputs: &[Input], outputs: &[Outputs; 2]) -> Outcome {
    let mut outcome = Outcome { sent: inputs.len(), ..Outcome::default() };
    for input in inputs {
        match outputs[0].get(&input.index) {
            None => outcome.silent += 1,
            Some(frames) if frames.iter().any(|(_, frame)| is_made_by_router(frame)) => {
                outcome.answered += 1;
            }
            Some(_) => outcome.forwarded += 1,
        }
        if !agree(outputs, input.index) {
            outcome.differences.push((input.note.clone(), difference(input, outputs)));
        }
    }
    // Frames that cannot be identified must be the same in total.
    if !agree(outputs, 0) {
        let mut text = String::new();
        let (one, other) = (frames(&outputs[0], 0), frames(&outputs[1], 0));
        let only_in = |frames: &[(Side, Vec<u8>)], others: &[(Side, Vec<u8>)]| {
            frames.iter().filter(|f| !others.contains(f)).cloned().collect::<Vec<_>>()
        };
        list(&mut text, "only the first", &only_in(one, other));
        list(&mut text, "only the second", &only_in(other, one));
        outcome.differences.push(("frames without a known packet".into(), text));
    }
    outcome
}

fn difference(input: &Input, outputs: &[Outputs; 2]) -> String {
    let mut text = format!("packet {} from {:?} ({}):\n  ", input.index, input.side, input.note);
    let _ = writeln!(text, "{}", describe(&input.frame));
    list(&mut text, "the first", frames(&outputs[0], input.index));
    list(&mut text, "the second", frames(&outputs[1], input.index));
    text
}

fn frames(outputs: &Outputs, index: u16) -> &[(Side, Vec<u8>)] {
    outputs.get(&index).map(Vec::as_slice).unwrap_or_default()
}

fn list(text: &mut String, name: &str, frames: &[(Side, Vec<u8>)]) {
    if frames.is_empty() {
        let _ = writeln!(text, "  {name} sends nothing");
    }
    for (side, frame) in frames {
        let _ = writeln!(text, "  {name} sends to the {side:?}: {}", describe(frame));
    }
}
