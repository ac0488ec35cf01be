//! IPsec of a file for `run`: what it requires of the section beyond `replay`, and the SAs with what is stored for their
//! keys.
//!
//! Sequence numbers are stored for each key ([`store`](crate::control::xfrm::store)), so that two SAs cannot have one: they
//! would send the same numbers, and with counter modes the same IVs. That is true of one SA for each direction, too, whose
//! packets the other end sends.

use std::collections::HashMap;
use std::fmt::Write;

use super::{StaticState, StaticXfrm};
use crate::control::config::Located;
use crate::control::xfrm::names::STATE_FLAGS;
use crate::control::xfrm::store::{KeyId, Record};
use crate::control::xfrm::workers::{self, WorkersState};
use crate::ipsec::{Action, Direction, Mode, Policy, Prefix, StateFlags, Template};
use crate::tables::Wanted;
use crate::wire::Protocol;
use crate::wire::esp::UDP_PORT;

/// What an SA is, without its keys, and the digest of these.
#[derive(PartialEq, Eq)]
pub struct Identity(String, [u8; 32]);

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identity").field(&self.0).finish()
    }
}

impl PartialEq for StaticXfrm {
    /// Whether they describe the same, wherever it is in the file.
    fn eq(&self, other: &StaticXfrm) -> bool {
        let states =
            |it: &StaticXfrm| it.states.iter().map(StaticState::identity).collect::<Vec<_>>();
        self.policies == other.policies && states(self) == states(other)
    }
}

impl Eq for StaticXfrm {}

impl StaticXfrm {
    /// Whether `run` can use it.
    ///
    /// # Errors
    /// For the first SA or policy that it cannot use, with its place.
    pub(in crate::control::config) fn check_for_run(&self) -> Result<(), Located> {
        let mut seen = HashMap::new();
        for state in &self.states {
            let wrong = |message: String| Err(Located::new(state.span.clone(), message));
            if let Some(other) = seen.insert(state.key_id(), state.config.spi) {
                return wrong(format!(
                    "its key is that of the SA with spi {other:#x}, expected a key of its own for each SA and direction, \
                     because sequence numbers are counted for each key"
                ));
            }
            if state.config.replay_window == 0 {
                return wrong(
                    "replay-window is 0, expected 1 or more: repeated packets would be accepted"
                        .to_owned(),
                );
            }
        }
        for ((_, policy), span) in self.policies.iter().zip(&self.policy_spans) {
            if policy.templates.iter().any(|template| template.is_optional) {
                let message =
                    "level use, expected required: without an SA packets would leave in clear";
                return Err(Located::new(span.clone(), message));
            }
        }
        Ok(())
    }

    /// The SAs, in the order of the file.
    pub fn states(&self) -> &[StaticState] {
        &self.states
    }

    /// How many SAs and policies there are, for people.
    pub fn summary(&self) -> String {
        format!("{} SAs, {} policies", self.states.len(), self.policies.len())
    }

    /// In what the kernel's policies differ from these, a command for each that makes them the same. The kernel drops what
    /// it gets of the packets that they protect only if it has the same policies.
    pub fn differences(&self, kernel: &[(Direction, Policy)]) -> Vec<String> {
        let plain = |(direction, policy): &(Direction, Policy)| {
            (*direction, Policy { index: 0, ..policy.clone() })
        };
        let [own, kernels] =
            [&self.policies, kernel].map(|list| list.iter().map(plain).collect::<Vec<_>>());
        // What the kernel finds a policy by.
        let place = |(direction, policy): &(Direction, Policy)| {
            (*direction, policy.family, policy.selector, policy.mark, policy.if_id)
        };
        let is_among = |one: &(Direction, Policy), list: &[(Direction, Policy)]| {
            list.iter().any(|other| place(other) == place(one))
        };
        let missing = own.iter().filter(|policy| !kernels.contains(policy));
        let missing = missing.map(|policy| {
            let verb = if is_among(policy, &kernels) { "update" } else { "add" };
            command(verb, policy)
        });
        let other =
            kernels.iter().filter(|policy| !own.contains(policy) && !is_among(policy, &own));
        missing.chain(other.map(|policy| command("delete", policy))).collect()
    }
}

impl StaticState {
    /// The name of its key.
    pub fn key_id(&self) -> KeyId {
        KeyId::of(&self.keys)
    }

    /// What its packets, algorithms and keys are: it tells whether an SA with the same [`key_id`](Self::key_id) is another
    /// one. Where it is in the file makes no difference.
    pub fn identity(&self) -> Identity {
        let all = format!("{:?} {:?} {:?}", self.config, self.proto, self.direction);
        Identity(all, self.keys.full_digest())
    }

    /// Which SA it is, as `ip xfrm` names one.
    pub fn name(&self) -> String {
        let crate::ipsec::StateConfig { src, dst, spi, .. } = &self.config;
        format!("src {src} dst {dst} proto {} spi {spi:#010x}", proto(self.proto))
    }

    /// Its SPI.
    pub fn spi(&self) -> u32 {
        self.config.spi
    }

    /// Where packets that it protects go.
    pub fn dst(&self) -> std::net::IpAddr {
        self.config.dst
    }

    /// What templates say of it.
    pub fn wanted(&self) -> Wanted {
        Wanted { dst: self.config.dst, proto: self.proto, reqid: self.config.reqid, if_id: 0 }
    }

    /// Its lines as those of `ip xfrm state`, without keys.
    pub fn text(&self) -> String {
        let config = &self.config;
        let mut text = format!(
            "src {} dst {}\n\tproto {} spi {:#010x} reqid {} mode tunnel\n\treplay-window {}",
            config.src,
            config.dst,
            proto(self.proto),
            config.spi,
            config.reqid,
            config.replay_window
        );
        let flags: Vec<&str> = STATE_FLAGS
            .iter()
            .filter(|(bit, _)| config.flags.contains(StateFlags(*bit as u16)))
            .map(|(_, name)| *name)
            .collect();
        if !flags.is_empty() {
            let _ = write!(text, " flag {}", flags.join(" "));
        }
        text + "\n"
    }

    /// The SA of the workers.
    ///
    /// # Errors
    /// Why they cannot use it.
    pub fn make_stored(&self, record: &Record, is_local: bool) -> Result<WorkersState, String> {
        match self.config.encap {
            Some(ports) if is_local && ports.dst != UDP_PORT => {
                Err(format!("dport of encap is {}, expected {UDP_PORT} for receiving", ports.dst))
            }
            _ => workers::make_stored(
                self.config.clone(),
                &self.keys,
                self.direction,
                record,
                is_local,
            ),
        }
    }
}

fn proto(proto: Protocol) -> &'static str {
    if proto == Protocol::AH { "ah" } else { "esp" }
}

/// The command of iproute2 about a policy.
fn command(verb: &str, (direction, policy): &(Direction, Policy)) -> String {
    let dir = match direction {
        Direction::In => "in",
        Direction::Out => "out",
        Direction::Fwd => "fwd",
    };
    let net = |prefix: &Prefix| format!("{}/{}", prefix.addr, prefix.len);
    let selector = &policy.selector;
    let mut text =
        format!("ip xfrm policy {verb} src {} dst {}", net(&selector.src), net(&selector.dst));
    if selector.proto != 0 {
        let _ = write!(text, " proto {}", selector.proto);
    }
    for (name, (port, mask)) in [("sport", selector.sport), ("dport", selector.dport)] {
        if mask != 0 {
            let _ = write!(text, " {name} {port}");
        }
    }
    let _ = write!(text, " dir {dir}");
    if policy.mark.mask != 0 {
        let _ = write!(text, " mark {} mask {}", policy.mark.value, policy.mark.mask);
    }
    if policy.if_id != 0 {
        let _ = write!(text, " if_id {}", policy.if_id);
    }
    if verb == "delete" {
        return text;
    }
    let action = if policy.action == Action::Block { " action block" } else { "" };
    let _ = write!(text, " priority {}{action}", policy.priority);
    policy.templates.iter().for_each(|template| text += &template_text(template));
    text
}

fn template_text(template: &Template) -> String {
    let Template { src, dst, spi, reqid, .. } = template;
    let mode = if template.mode == Mode::Tunnel { "tunnel" } else { "transport" };
    let spi = if *spi == 0 { String::new() } else { format!(" spi {spi:#x}") };
    format!(
        " tmpl src {src} dst {dst} proto {}{spi} reqid {reqid} mode {mode}",
        proto(template.proto)
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::control::config::Config;

    const FILE: &str = r#"
[run]
interfaces = ["lan", "wan"]
[[xfrm.state]]
src = "198.18.2.1"
dst = "198.18.2.2"
proto = "esp"
spi = 0x1001
mode = "tunnel"
reqid = 1
flag = ["esn"]
aead = { name = "rfc4106(gcm(aes))", key = "0x000102030405060708090a0b0c0d0e0f10111213", icv = 128 }
[[xfrm.state]]
src = "198.18.2.2"
dst = "198.18.2.1"
proto = "ah"
spi = 0x1002
mode = "tunnel"
auth-trunc = { name = "hmac(sha256)", key = "0xff0102030405060708090a0b0c0d0e0f10111213", trunc = 128 }
[[xfrm.policy]]
src = "10.1.0.0/24"
dst = "10.2.0.0/24"
proto = "udp"
dport = 53
dir = "out"
priority = 100
tmpl = { src = "198.18.2.1", dst = "198.18.2.2", proto = "esp", reqid = 1, mode = "tunnel" }
[[xfrm.policy]]
dst = "2001:db8::/32"
dir = "fwd"
action = "block"
"#;

    fn parse(text: &str) -> Result<Arc<StaticXfrm>, String> {
        let config = Config::parse(text, Path::new("x.toml")).map_err(|error| error.to_string());
        config.map(|config| config.xfrm)
    }

    #[test]
    fn run_refuses_what_would_repeat_numbers_or_send_in_clear() {
        let same = FILE.replace("0xff01", "0x0001");
        let error = parse(&same).expect_err("one key for two SAs");
        assert!(
            error.starts_with("x.toml:13:1: its key is that of the SA with spi 0x1001"),
            "{error}"
        );
        parse(&same.replace("[run]\ninterfaces = [\"lan\", \"wan\"]\n", ""))
            .expect("replay does not");
        let error =
            parse(&FILE.replace("mode = \"tunnel\" }", "mode = \"tunnel\", level = \"use\" }"))
                .expect_err("is optional");
        assert!(error.starts_with("x.toml:20:1: level use, expected required"), "{error}");
        let error =
            parse(&FILE.replace("flag = [\"esn\"]", "replay-window = 0")).expect_err("none");
        assert!(error.contains("replay-window is 0, expected 1 or more"), "{error}");
    }

    #[test]
    fn files_that_say_the_same_are_the_same() {
        let one = parse(FILE).expect("is right");
        assert_eq!(one, parse(&format!("# moved\n{FILE}")).expect("is right"));
        for (from, to) in
            [("0xff01", "0xfe01"), ("0x1001", "0x1003"), ("priority = 100", "priority = 9")]
        {
            assert_ne!(one, parse(&FILE.replace(from, to)).expect("is right"), "{from}");
        }
    }

    #[test]
    fn another_algorithm_or_key_for_authentication_is_another_sa() {
        let gcm = "aead = { name = \"rfc4106(gcm(aes))\", key = \"0x000102030405060708090a0b0c0d0e0f10111213\", icv = 128 }";
        let cbc = "enc = { name = \"cbc(aes)\", key = \"0x000102030405060708090a0b0c0d0e0f\" }\n\
                   auth-trunc = { name = \"hmac(sha256)\", key = \"0x0102030405060708\", trunc = 128 }";
        let cbc = FILE.replace(gcm, cbc);
        assert_ne!(cbc, FILE);
        let cbc = cbc.as_str();
        for (file, from, to) in [
            (FILE, "rfc4106(gcm(aes))", "rfc4543(gcm(aes))"),
            (cbc, "\"0x0102030405060708\"", "\"0x0102030405060709\""),
            (cbc, "\"0x0102030405060708\", trunc = 128", "\"0x010203040506070809\", trunc = 128"),
            (
                cbc,
                "hmac(sha256)\", key = \"0x0102030405060708\", trunc = 128",
                "hmac(sha1)\", key = \"0x0102030405060708\", trunc = 96",
            ),
        ] {
            let changed = file.replace(from, to);
            assert_ne!(changed, file, "{from}");
            let [one, other] = [file, changed.as_str()].map(|text| parse(text).expect("is right"));
            assert_ne!(one, other, "{to}");
            let [one, other] = [&one, &other].map(|file| &file.states()[0]);
            assert_ne!(one.identity(), other.identity(), "{to}");
            assert_eq!(one.key_id(), other.key_id(), "its numbers go on: {to}");
        }
    }

    #[test]
    fn the_kernel_is_to_have_the_same_policies() {
        let file = parse(FILE).expect("is right");
        let mut kernel = file.policies();
        kernel.iter_mut().for_each(|(_, policy)| policy.index += 800);
        assert_eq!(file.differences(&kernel), [""; 0]);
        let out = "ip xfrm policy add src 10.1.0.0/24 dst 10.2.0.0/24 proto 17 dport 53 dir out priority 100 \
                   tmpl src 198.18.2.1 dst 198.18.2.2 proto esp reqid 1 mode tunnel";
        let fwd = "ip xfrm policy add src ::/0 dst 2001:db8::/32 dir fwd priority 0 action block";
        assert_eq!(file.differences(&[]), [out, fwd]);
        // One that is laxer, or that wins, is another one.
        for change in [
            |policy: &mut Policy| policy.templates[0].is_optional = true,
            |policy: &mut Policy| policy.templates.clear(),
            |policy: &mut Policy| policy.priority = 101,
            |policy: &mut Policy| policy.has_icmp = true,
        ] {
            let mut other = kernel.clone();
            let (_, policy) = other.iter_mut().find(|(it, _)| *it == Direction::Out).expect("one");
            change(policy);
            assert_eq!(file.differences(&other), [out.replace("policy add", "policy update")]);
        }
        let more = parse(&FILE.replace("10.1.0.0/24", "10.1.0.0/25")).expect("is right");
        let deleted =
            "ip xfrm policy delete src 10.1.0.0/25 dst 10.2.0.0/24 proto 17 dport 53 dir out";
        assert_eq!(file.differences(&more.policies()), [out, deleted]);
    }

    #[test]
    fn numbers_go_on_from_those_stored() {
        let file = parse(FILE).expect("is right");
        let [out, input] = file.states() else { panic!("{file:?}") };
        let record = Record { sent: 7000, received: 300, ..Record::new().expect("random") };
        match out.make_stored(&record, false).expect("is right") {
            WorkersState::Outbound(state) => assert_eq!(state.sequence().next(), 7001),
            WorkersState::Inbound(_) => panic!("sends"),
        }
        match input.make_stored(&record, true).expect("is right") {
            WorkersState::Inbound(state) => {
                let checked = [1, 250, 300, 301].map(|n| state.replay().check(n).is_ok());
                assert_eq!(checked, [false, false, false, true]);
            }
            WorkersState::Outbound(_) => panic!("receives"),
        }
        assert_ne!(out.key_id(), input.key_id());
        assert!(out.text().contains("flag") && !out.text().contains("0405"), "{}", out.text());
        assert_eq!(out.name(), "src 198.18.2.1 dst 198.18.2.2 proto esp spi 0x00001001");
    }
}
