//! Compares lookups in the tables with `ip route get … iif`, which routes as for a forwarded
//! packet.

use std::collections::HashMap;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::random::Rng;
use crate::control::mirror::Mirror;
use crate::control::mirror::rib::RibAddr;
use crate::fib::{FamilyFib, FibResult, Flow, Lpm, Nexthop, RouteType};

/// One lookup.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    pub dst: IpAddr,
    pub from: IpAddr,
    pub iif: u32,
    pub mark: u32,
}

/// The result to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// RTN_* of a route to the router itself.
    Local(&'static str),
    /// Interfaces and gateways; of a multipath route the kernel reports one.
    Nexthops(Vec<(String, Option<IpAddr>)>),
    /// No route, for whatever reason.
    NoRoute,
    /// Left to the kernel.
    Punt,
}

fn ours(mirror: &Mirror, question: &Question) -> Answer {
    let tables = mirror.tables();
    match (question.dst, question.from) {
        (IpAddr::V4(dst), IpAddr::V4(from)) => {
            look_up(mirror, &tables.fib4, dst.to_bits(), from.to_bits(), question)
        }
        (IpAddr::V6(dst), IpAddr::V6(from)) => {
            look_up(mirror, &tables.fib6, dst.to_bits(), from.to_bits(), question)
        }
        other => panic!("addresses must be of one family: {other:?}"),
    }
}

fn look_up<A: RibAddr>(
    mirror: &Mirror,
    fib: &FamilyFib<Lpm<A>>,
    daddr: A,
    saddr: A,
    question: &Question,
) -> Answer {
    let flow = Flow { saddr, daddr, iif: question.iif, mark: question.mark };
    let info = match fib.fib_lookup(&flow) {
        FibResult::NoRoute => return Answer::NoRoute,
        FibResult::Rule(RouteType::Punt(_)) => return Answer::Punt,
        FibResult::Rule(_) => return Answer::NoRoute,
        FibResult::Route(info) => info,
    };
    let name = |nh: &Nexthop| (mirror.state().ifname(nh.oif), nh.gateway);
    match info.kind {
        RouteType::Unicast => {
            Answer::Nexthops(info.nexthops.iter().filter(|nh| !nh.dead).map(name).collect())
        }
        RouteType::Local => Answer::Local("local"),
        RouteType::Broadcast => Answer::Local("broadcast"),
        RouteType::Anycast => Answer::Local("anycast"),
        RouteType::Multicast => Answer::Local("multicast"),
        RouteType::Punt(_) => Answer::Punt,
        _ => Answer::NoRoute,
    }
}

/// Runs all lookups in one batch; an address without a reply has no route.
fn theirs(mirror: &Mirror, questions: &[Question]) -> HashMap<IpAddr, Answer> {
    let mut lines = String::new();
    for Question { dst, from, iif, mark } in questions {
        let iif = mirror.state().ifname(*iif);
        lines += &format!("route get {dst} from {from} iif {iif} mark {mark}\n");
    }
    let mut child = Command::new("ip")
        .args(["-j", "-force", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("ip");
    let mut stdin = child.stdin.take().expect("piped");
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().expect("ip ends");
    writer.join().expect("no panic").expect("written");
    let mut answers = HashMap::new();
    for answer in serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>() {
        let Value::Array(answer) = answer.expect("JSON") else { continue };
        let Some(answer) = answer.first() else { continue };
        let ip = |value: &Value| value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
        let Some(dst) = ip(&answer["dst"]) else { continue };
        let kind = match answer["type"].as_str() {
            Some("local") => Answer::Local("local"),
            Some("broadcast") => Answer::Local("broadcast"),
            Some("anycast") => Answer::Local("anycast"),
            Some("multicast") => Answer::Local("multicast"),
            Some(_) => Answer::NoRoute,
            None => {
                let via = ip(&answer["gateway"]).or(ip(&answer["via"]["host"]));
                Answer::Nexthops(vec![(answer["dev"].as_str().unwrap_or("-").to_owned(), via)])
            }
        };
        answers.insert(dst, kind);
    }
    answers
}

fn agree(mirror: &Mirror, ours: &Answer, theirs: &Answer) -> bool {
    // Whether a next hop without carrier is used is decided by the kernel when the hop is added or
    // the carrier changes, by the mirror from the current setting. It forwards nothing in either
    // case.
    let has_no_carrier = |(dev, _): &(String, Option<IpAddr>)| {
        mirror.state().links.values().any(|link| link.name == *dev && !link.is_running())
    };
    match (ours, theirs) {
        (_, Answer::Nexthops(theirs)) if theirs.iter().all(has_no_carrier) => true,
        (Answer::Punt, _) => true,
        (Answer::Nexthops(ours), Answer::Nexthops(theirs)) => {
            theirs.iter().all(|nexthop| ours.contains(nexthop))
        }
        // The kernel's reply for IPv6 does not distinguish anycast from local.
        (Answer::Local("anycast"), Answer::Local(_)) => true,
        _ => ours == theirs,
    }
}

/// Every question is answered as by the kernel, or left to it for a reason that `status` shows. Returns
/// those that were left to it.
pub fn same_answers(mirror: &Mirror, questions: &[Question]) -> Result<Vec<Question>, String> {
    let theirs = theirs(mirror, questions);
    let (mut wrong, mut punted) = (Vec::new(), Vec::new());
    for question in questions {
        let our = ours(mirror, question);
        let their = theirs.get(&question.dst).cloned().unwrap_or(Answer::NoRoute);
        if our == Answer::Punt {
            punted.push(*question);
            if mirror.unmirrored().is_empty() {
                wrong.push(format!("{question:?}: left to the kernel, and no reason is shown"));
            }
        }
        if !agree(mirror, &our, &their) {
            wrong.push(format!("{question:?}: mirror {our:?}, kernel {their:?}"));
        }
    }
    if wrong.is_empty() {
        return Ok(punted);
    }
    Err(format!("{} wrong results: {:#?}", wrong.len(), &wrong[..wrong.len().min(10)]))
}

/// The gateways that the kernel chooses; `None`: no route, or none with a gateway.
pub fn chosen(mirror: &Mirror, questions: &[Question]) -> Vec<Option<IpAddr>> {
    let theirs = theirs(mirror, questions);
    let gateway = |question: &Question| match theirs.get(&question.dst) {
        Some(Answer::Nexthops(hops)) => hops.first().and_then(|(_, gateway)| *gateway),
        _ => None,
    };
    questions.iter().map(gateway).collect()
}

/// The gateway that the tables have for a flow with this hash.
pub fn select(mirror: &Mirror, question: &Question, hash: u32) -> Option<IpAddr> {
    let (iif, mark) = (question.iif, question.mark);
    let tables = mirror.tables();
    let result = match (question.dst, question.from) {
        (IpAddr::V4(daddr), IpAddr::V4(saddr)) => {
            let (daddr, saddr) = (daddr.to_bits(), saddr.to_bits());
            tables.fib4.fib_lookup(&Flow { saddr, daddr, iif, mark })
        }
        (IpAddr::V6(daddr), IpAddr::V6(saddr)) => {
            let (daddr, saddr) = (daddr.to_bits(), saddr.to_bits());
            tables.fib6.fib_lookup(&Flow { saddr, daddr, iif, mark })
        }
        other => panic!("addresses must be of one family: {other:?}"),
    };
    let FibResult::Route(info) = result else { return None };
    info.select(|| hash)?.gateway
}

/// Looks up random addresses around the prefixes of the random commands.
pub fn random_answers(mirror: &Mirror, rng: &mut Rng) -> Result<(), String> {
    let up = |name: &str| {
        let link = mirror.state().links.values().find(|link| link.name == name);
        link.filter(|link| link.is_up()).map(|link| link.ifindex)
    };
    let iifs: Vec<u32> = ["va", "vc"].into_iter().filter_map(up).collect();
    // An interface without an address accepts no packets of that family.
    let usable = |iif: u32, v4: bool| {
        mirror.state().addrs.iter().any(|a| a.ifindex == iif && a.local.is_ipv4() == v4)
    };
    let mut questions: HashMap<IpAddr, Question> = HashMap::new();
    for _ in 0..200 {
        if iifs.is_empty() {
            return Ok(());
        }
        let iif = iifs[rng.below(iifs.len() as u64) as usize];
        let mark = rng.below(3) as u32;
        let (a, b, c) = (rng.below(4) as u8, rng.below(4) as u8, rng.below(6) as u8);
        let v4: IpAddr = [10, a, b, if c == 5 { 255 } else { c | (b << 6) }].into();
        let (x, y, z) = (5 + u16::from(a / 2), u16::from(b / 2), u16::from(c) + 5);
        let v6: IpAddr = match a {
            0 => [0x2001, 0xdb8, u16::from(b), 0, 0, 0, u16::from(c) << 13, z].into(),
            _ => [0x2001, 0xdb8, x, y, 0, 0, 0, z].into(),
        };
        let from4 = [10, if a == 1 { 99 } else { 98 }, 0, 5].into();
        let from6 = [0x2001, 0xdb8, if a == 1 { 0x99 } else { 0x98 }, 0, 0, 0, 0, 5].into();
        if usable(iif, true) {
            questions.insert(v4, Question { dst: v4, from: from4, iif, mark });
        }
        if usable(iif, false) {
            questions.insert(v6, Question { dst: v6, from: from6, iif, mark });
        }
    }
    let questions: Vec<Question> = questions.into_values().collect();
    same_answers(mirror, &questions).map(|_| ())
}
