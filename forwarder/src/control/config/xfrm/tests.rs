//! Sections as people write them, right and wrong.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::StaticXfrm;
use crate::control::config::Config;
use crate::ipsec::{Action, Direction, Mode, StateFlags, UdpPorts};
use crate::wire::Protocol;

/// 20 octets.
const KEY: &str = "0x000102030405060708090a0b0c0d0e0f10111213";

const STATE: &str = r#"
[[xfrm.state]]
src = "198.18.2.1"
dst = "198.18.2.2"
proto = "esp"
spi = 0x1001
mode = "tunnel"
"#;

fn gcm(more: &str) -> String {
    format!(
        "{STATE}aead = {{ name = \"rfc4106(gcm(aes))\", key = \"{KEY}\", icv = 128 }}\n{more}\n"
    )
}

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("x.toml")).map_err(|error| error.to_string())
}

fn xfrm(text: &str) -> std::sync::Arc<StaticXfrm> {
    parse(text).expect("is right").xfrm
}

fn wrong(text: &str) -> String {
    let error = parse(text).expect_err(text);
    assert!(!error.contains("01020304"), "{error}");
    error
}

#[test]
fn an_sa_has_what_its_section_says() {
    let more = "reqid = 7\nflag = [\"esn\", \"nopmtudisc\"]\nextra-flag = [\"dont-encap-dscp\"]\n\
                replay-window = 128\nencap = { type = \"espinudp\", sport = 4501, dport = 4500 }\n\
                dir = \"out\"\n";
    let text = gcm(more);
    let xfrm = xfrm(&text);
    let [state] = &xfrm.states[..] else { panic!("{xfrm:?}") };
    let config = &state.config;
    assert_eq!((config.spi, config.reqid, config.mode), (0x1001, 7, Mode::Tunnel));
    assert_eq!(config.replay_window, 128);
    let flags = StateFlags::ESN | StateFlags::NOPMTUDISC | StateFlags::DONT_ENCAP_DSCP;
    assert_eq!((config.flags, state.proto), (flags, Protocol::ESP));
    assert_eq!(config.encap, Some(UdpPorts { src: 4501, dst: 4500 }));
    assert_eq!(state.direction, Some(Direction::Out));
    assert!(xfrm.has_keys() && !format!("{xfrm:?}").contains("keys"), "{xfrm:?}");
    let default = self::xfrm(&gcm(""));
    assert_eq!(default.states[0].config.replay_window, 64, "replay is prevented");
}

#[test]
fn a_policy_has_what_its_section_says() {
    let xfrm = xfrm(
        r#"
[[xfrm.policy]]
dst = "10.2.0.0/24"
proto = "udp"
dport = 53
dir = "out"
priority = 9
tmpl = { src = "192.0.2.1", dst = "192.0.2.2", proto = "ah", spi = 5, reqid = 3, mode = "tunnel", level = "use" }
[[xfrm.policy]]
src = "2001:db8::/32"
dir = "fwd"
action = "block"
"#,
    );
    let [(out, protect), (fwd, block)] = &xfrm.policies[..] else { panic!("{xfrm:?}") };
    assert_eq!((*out, *fwd), (Direction::Out, Direction::Fwd));
    assert_eq!((protect.priority, protect.action), (9, Action::Allow));
    assert_ne!(protect.index, block.index);
    let selector = &protect.selector;
    assert_eq!((selector.proto, selector.dport, selector.sport), (17, (53, 0xffff), (0, 0)));
    assert_eq!((selector.dst.len, selector.src.len), (24, 0));
    let [template] = &protect.templates[..] else { panic!("{protect:?}") };
    assert_eq!((template.proto, template.spi, template.reqid), (Protocol::AH, 5, 3));
    assert!(template.is_optional);
    assert_eq!((block.action, block.templates.len()), (Action::Block, 0));
    assert!(block.selector.dst.addr.is_ipv6(), "of the family of src");
}

#[test]
fn errors_of_sas_name_place_found_and_expected() {
    let enc = |name: &str, key: &str| {
        format!(
            "{STATE}enc = {{ name = \"{name}\", key = \"{key}\" }}\n\
             auth-trunc = {{ name = \"hmac(sha256)\", key = \"{KEY}\", trunc = 128 }}\n"
        )
    };
    for (text, expected) in [
        (gcm("colour = 1"), "x.toml:9:1: unknown field `colour`, expected one of `src`, `dst`,"),
        (
            gcm("").replace("gcm(aes))", "ccm(aes))"),
            "x.toml:8:17: unknown algorithm `rfc4106(ccm(aes))`, expected one of \
             rfc4106(gcm(aes)), rfc4543(gcm(aes)), rfc7539esp(chacha20,poly1305)",
        ),
        (gcm("").replace("icv = 128", "icv = 96"), "x.toml:8:96: icv is 96, expected 128 bits"),
        (
            gcm("").replace("0x00", "0x"),
            "x.toml:8:44: a key of 19 octets for rfc4106(gcm(aes)), expected 20 or 36: the key, \
             then 4 octets of salt",
        ),
        (gcm("").replace("0x00", "00"), "a key that does not begin with 0x, expected one like"),
        (
            gcm("").replace("0x00", "0x0"),
            "x.toml:8:44: a key of 39 hexadecimal digits, expected two for each octet",
        ),
        (
            enc("cbc(aes)", KEY),
            "a key of 20 octets for cbc(aes), expected 16, 24 or 32: the key alone",
        ),
        (
            enc("cbc(des3_ede)", KEY),
            "unknown algorithm `cbc(des3_ede)`, expected one of ecb(cipher",
        ),
        (
            enc("ecb(cipher_null)", KEY),
            "a key of 20 octets for ecb(cipher_null), expected 0: there is no encryption",
        ),
        (
            enc("ecb(cipher_null)", "").replace("trunc = 128", "trunc = 96"),
            "x.toml:9:99: trunc is 96, expected 128 bits",
        ),
        (
            gcm("").replace("\"tunnel\"", "\"transport\""),
            "x.toml:7:8: mode is `transport`, expected tunnel: workers use no other mode",
        ),
        (
            gcm("").replace("mode = \"tunnel\"\n", ""),
            "x.toml:2:1: no mode, expected mode = \"tunnel\"",
        ),
        (gcm("").replace("0x1001", "0"), "x.toml:6:7: spi is 0, expected 1 to 4294967295"),
        (
            gcm("").replace("\"198.18.2.2\"", "\"::1\""),
            "x.toml:3:7: src is 198.18.2.1 and dst is ::1",
        ),
        (gcm("").replace("\"esp\"", "\"ah\""), "x.toml:2:1: an SA of proto ah has auth-trunc, and"),
        (STATE.to_owned(), "x.toml:2:1: an SA of proto esp has either aead, or enc and auth-trunc"),
        (
            gcm("flag = [\"wildrecv\"]"),
            "x.toml:9:9: unknown flag `wildrecv`, expected one of noecn, decap-dscp, nopmtudisc",
        ),
        (
            gcm("flag = [\"esn\"]\nreplay-window = 0"),
            "x.toml:10:17: replay-window is 0, expected 1 or more with the flag esn",
        ),
        (gcm("replay-window = 5000"), "x.toml:9:17: a replay window of 5000 packets: at most 4096"),
        (gcm(&gcm("")), "x.toml:10:1: the SA with spi 0x1001 to 198.18.2.2 is described twice"),
        (
            gcm("encap = { type = \"espintcp\", sport = 1, dport = 1 }"),
            "x.toml:9:18: encapsulation `espintcp`, expected espinudp",
        ),
    ] {
        let error = wrong(&text);
        assert!(error.contains(expected), "{error}\n{expected}");
        assert!(error.starts_with("x.toml:"), "{error}");
    }
}

#[test]
fn errors_of_policies_name_place_found_and_expected() {
    let tmpl = "tmpl = { src = \"192.0.2.1\", dst = \"192.0.2.2\", proto = \"esp\" }";
    for (text, expected) in [
        ("", "x.toml:1:1: a policy without src and dst, expected one, such as dst = \"0.0.0.0/0\""),
        (
            "dst = \"10.0.0.1/8\"",
            "x.toml:3:7: `10.0.0.1/8` has host bits set, expected the network",
        ),
        ("dst = \"::/0\"\nsrc = \"10.0.0.0/8\"", "x.toml:3:7: src and dst of a policy are of one"),
        ("dst = \"::/0\"\nsport = 5", "x.toml:4:9: ports are of proto tcp, udp or sctp, expected"),
        (
            "dst = \"::/0\"\nproto = \"smtp\"",
            "x.toml:4:9: invalid value: string \"smtp\", expected a",
        ),
        (
            &format!("dst = \"10.0.0.0/8\"\n{tmpl}"),
            "x.toml:4:8: no mode, expected mode = \"tunnel\"",
        ),
        (
            "dst = \"::/0\"\n[[xfrm.policy]]\ndir = \"out\"\ndst = \"::/0\"\npriority = 2",
            "x.toml:4:1: a policy with this dir and selector is described already",
        ),
    ] {
        let error = wrong(&format!("[[xfrm.policy]]\ndir = \"out\"\n{text}\n"));
        assert!(error.contains(expected), "{error}\n{expected}");
    }
}

#[test]
fn keys_where_none_belong_are_not_shown() {
    let aead = format!("aead = \"rfc4106(gcm(aes)) {KEY} 128\"");
    let error = wrong(&format!("{STATE}{aead}\n"));
    let expected = "string \"…\", expected a table like { name =";
    assert!(error.contains(expected), "{error}");
    for text in [
        gcm("").replace("0x1001", &format!("\"{KEY}\"")),
        gcm("").replace("rfc4106(gcm(aes))", KEY),
        gcm("").replace(&format!("\"{KEY}\""), KEY),
        gcm("").replace("icv", KEY),
        gcm(&format!("flag = [\"{KEY}\"]")),
        gcm(&format!("reqid = {KEY}")),
        gcm(KEY),
    ] {
        // It fails if the error has the key.
        wrong(&text);
    }
}

#[test]
fn no_mistyped_file_has_an_error_with_a_key() {
    let text = gcm("encap = { type = \"espinudp\", sport = 4500, dport = 4500 }");
    let digits = &KEY[2..];
    for at in 0..text.len() {
        let (before, after) = text.split_at(at);
        let changed = ["", "\"", "\n", "\\", "x", " ", "]", "}", "=", ","]
            .map(|it| [before, it, after].concat());
        let cut = [before.to_owned(), [before, &after[1..]].concat()];
        for text in changed.iter().chain(&cut) {
            let Err(error) = parse(text) else { continue };
            let shown = (0..digits.len() - 8).find(|at| error.contains(&digits[*at..at + 8]));
            assert_eq!(shown, None, "{error}");
        }
    }
}

#[test]
fn others_may_not_read_a_file_with_keys() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.toml");
    let load = |mode, text: &str| {
        fs::write(&path, text).expect("writes");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("sets");
        Config::load(&path).map(|config| config.xfrm.has_keys()).map_err(|it| it.to_string())
    };
    assert_eq!([load(0o600, &gcm("")), load(0o400, &gcm(""))], [Ok(true), Ok(true)]);
    for mode in [0o640, 0o604, 0o620, 0o644] {
        let error = load(mode, &gcm("")).expect_err("others can read it");
        let shown =
            format!("config {}: it has keys in [[xfrm.state]], and its mode ", path.display());
        assert!(error.starts_with(&format!("{shown}{mode:04o} lets")), "{error}");
        assert!(error.ends_with("run `chmod 600` on it"), "{error}");
    }
    let policy = "[[xfrm.policy]]\ndir = \"out\"\ndst = \"::/0\"\n";
    assert_eq!(load(0o644, policy), Ok(false), "there is no key");
}

#[test]
fn the_direction_of_an_sa_is_that_of_the_network() {
    let network = |address: &str, more: &str| {
        let port = format!(
            "[[replay.interface]]\nname = \"a\"\nmac = \"02:00:00:00:00:01\"\n\
             addresses = [\"{address}/24\"]\n"
        );
        let config = parse(&format!("{port}{}", gcm(more)))?;
        let network = config.network().expect("a network").expect("parse has found no error");
        let states = network.xfrm.states();
        Ok::<_, String>((states.inbound.states().count(), states.outbound.len()))
    };
    assert_eq!(network("198.18.2.2", ""), Ok((1, 0)));
    assert_eq!(network("198.18.2.1", ""), Ok((0, 1)));
    assert_eq!(network("198.18.2.2", "dir = \"in\""), Ok((1, 0)));
    let error = |address, more| network(address, more).expect_err("is wrong");
    assert_eq!(
        error("198.18.2.2", "dir = \"out\""),
        "x.toml:6:1: dir out to an address of the router"
    );
    assert_eq!(error("198.18.2.1", "dir = \"in\""), "x.toml:6:1: dir in to another host");
    assert_eq!(
        error("198.18.2.2", "encap = { type = \"espinudp\", sport = 4500, dport = 4501 }"),
        "x.toml:6:1: dport of encap is 4501, expected 4500 for receiving"
    );
}
