//! Resolves the section of a file to policies and SAs: names become numbers, and what cannot be is refused.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use toml::Spanned;

use super::section::{
    AeadSection, AuthSection, EncSection, EncapSection, IpsecProtocol, Level, PolicySection,
    StateDirection, StateSection, TemplateSection, XfrmSection,
};
use super::{StaticState, StaticXfrm};
use crate::control::config::Located;
use crate::control::config::ipnet::IpNet;
use crate::control::xfrm::names::{EXTRA_FLAGS, STATE_FLAGS};
use crate::control::xfrm::workers;
use crate::ipsec::{
    Aead, Auth, BadState, BadWindow, Cipher, EcnRules, EspKeys, Family, Keys, Mode, Policy, Prefix,
    Secret, Selector, StateConfig, StateFlags, Template, UdpPorts,
};
use crate::wire::Protocol;

/// Protection against replay of an SA that does not say. That of `ip xfrm` has none.
const REPLAY_WINDOW: u32 = 64;
/// XFRM_STATE_WILDRECV, and XFRM_SA_XFLAG_OSEQ_MAY_WRAP: not for workers.
const KERNELS_FLAGS: [&str; 2] = ["wildrecv", "oseq-may-wrap"];
/// The kernel's indexes of policies count in steps of 8.
const INDEX_STEP: u32 = 8;

pub(super) fn resolve(section: XfrmSection) -> Result<StaticXfrm, Located> {
    let mut xfrm = StaticXfrm::default();
    let mut seen = HashSet::new();
    for state in section.state {
        let state = resolve_state(state)?;
        let StateConfig { dst, spi, .. } = state.config;
        if !seen.insert((dst, state.proto, spi)) {
            let message = format!("the SA with spi {spi:#x} to {dst} is described twice");
            return Err(Located::new(state.span, message));
        }
        xfrm.states.push(state);
    }
    for (policy, n) in section.policy.into_iter().zip(1..) {
        let span = policy.span();
        let (direction, policy) = (policy.get_ref().dir.direction(), resolve_policy(&policy, n)?);
        let is_same = |(other, it): &(_, Policy)| {
            *other == direction && it.selector == policy.selector && it.family == policy.family
        };
        if xfrm.policies.iter().any(is_same) {
            let message = "a policy with this dir and selector is described already";
            return Err(Located::new(span, message));
        }
        xfrm.policies.push((direction, policy));
        xfrm.policy_spans.push(span);
    }
    Ok(xfrm)
}

fn resolve_state(state: Spanned<StateSection>) -> Result<StaticState, Located> {
    let (span, state) = (state.span(), state.into_inner());
    check_mode(state.mode.as_ref(), &span)?;
    check_families(&state.src, state.dst)?;
    let spi = *state.spi.get_ref();
    if spi == 0 {
        let message = "spi is 0, expected 1 to 4294967295, and 256 or more by RFC 4303";
        return Err(Located::new(state.spi.span(), message));
    }
    let flags = flags(&state.flag, &state.extra_flag)?;
    let family = Family::of(state.dst);
    let selector_family = flags.selector_family(None, family);
    let window = state.replay_window.as_ref();
    let config = StateConfig {
        reqid: state.reqid,
        flags,
        ecn: EcnRules::Xfrm,
        selector: any(selector_family.unwrap_or(family)),
        selector_family,
        encap: state.encap.as_ref().map(encap).transpose()?,
        replay_window: window.map_or(REPLAY_WINDOW, |window| *window.get_ref()),
        ..StateConfig::new(Mode::Tunnel, [*state.src.get_ref(), state.dst], spi)
    };
    let proto = state.proto.number();
    let keys = keys(state.proto, state.aead, state.enc, state.auth_trunc, &span)?;
    let direction = state.dir.map(|dir| StateDirection::direction(*dir.get_ref()));
    workers::check(&config, &keys, direction).map_err(|error| of_library(error, window, &span))?;
    Ok(StaticState { config, proto, keys, direction, span })
}

/// What the IPsec library does not accept, at its place.
fn of_library(error: BadState, window: Option<&Spanned<u32>>, span: &Range<usize>) -> Located {
    let message = match error {
        BadState::Window(BadWindow::EsnWithoutWindow) => {
            "replay-window is 0, expected 1 or more with the flag esn".to_owned()
        }
        BadState::EncapOfAh => "encap of an SA of proto ah, expected proto = \"esp\"".to_owned(),
        other => other.to_string(),
    };
    let at_window = window.filter(|_| matches!(error, BadState::Window(_)));
    Located::new(at_window.map_or(span.clone(), Spanned::span), message)
}

/// Everything of a family.
fn any(family: Family) -> Selector {
    let prefix = Prefix { addr: unspecified(family), len: 0 };
    Selector { dst: prefix, src: prefix, ..Selector::default() }
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn check_mode(mode: Option<&Spanned<String>>, span: &Range<usize>) -> Result<(), Located> {
    match mode {
        Some(mode) if mode.get_ref() == "tunnel" => Ok(()),
        Some(mode) => {
            let message =
                format!("mode is `{}`, expected tunnel: workers use no other mode", mode.get_ref());
            Err(Located::new(mode.span(), message))
        }
        // The default of `ip xfrm` is transport.
        None => Err(Located::new(span.clone(), "no mode, expected mode = \"tunnel\"")),
    }
}

fn check_families(src: &Spanned<IpAddr>, dst: IpAddr) -> Result<(), Located> {
    if src.get_ref().is_ipv4() == dst.is_ipv4() {
        return Ok(());
    }
    let message = format!("src is {} and dst is {dst}, expected one family", src.get_ref());
    Err(Located::new(src.span(), message))
}

fn flags(flag: &[Spanned<String>], extra: &[Spanned<String>]) -> Result<StateFlags, Located> {
    let flags = u8::try_from(bits(flag, &STATE_FLAGS)?).unwrap_or(0);
    // All that are left have a constant.
    Ok(StateFlags::from_kernel(flags, bits(extra, &EXTRA_FLAGS)?).unwrap_or_default())
}

fn bits(given: &[Spanned<String>], names: &[(u32, &str)]) -> Result<u32, Located> {
    let usable = || names.iter().filter(|(_, name)| !KERNELS_FLAGS.contains(name));
    let bit = |name: &Spanned<String>| {
        let known = usable().find(|(_, known)| known == name.get_ref());
        known.map(|(bit, _)| *bit).ok_or_else(|| {
            let expected: Vec<&str> = usable().map(|(_, name)| *name).collect();
            let expected = expected.join(", ");
            let message = format!("unknown flag `{}`, expected one of {expected}", name.get_ref());
            Located::new(name.span(), message)
        })
    };
    given.iter().try_fold(0, |bits, name| Ok(bits | bit(name)?))
}

fn encap(encap: &Spanned<EncapSection>) -> Result<UdpPorts, Located> {
    let EncapSection { kind, sport, dport } = encap.get_ref();
    if kind.get_ref() != "espinudp" {
        let message = format!("encapsulation `{}`, expected espinudp", kind.get_ref());
        return Err(Located::new(kind.span(), message));
    }
    Ok(UdpPorts { src: *sport, dst: *dport })
}

fn keys(
    proto: IpsecProtocol,
    aead: Option<AeadSection>,
    enc: Option<EncSection>,
    auth: Option<AuthSection>,
    span: &Range<usize>,
) -> Result<Keys, Located> {
    let message = match (proto, aead, enc, auth) {
        (IpsecProtocol::Esp, Some(section), None, None) => {
            let (aead, key) = aead_key(section)?;
            return Ok(Keys::Esp(EspKeys::Combined(aead, key)));
        }
        (IpsecProtocol::Esp, None, Some(enc), Some(auth)) => {
            let ((cipher, key), (auth, auth_key)) = (cipher_key(enc)?, auth_key(auth)?);
            return Ok(Keys::Esp(EspKeys::EncryptThenMac(cipher, key, auth, auth_key)));
        }
        (IpsecProtocol::Ah, None, None, Some(auth)) => {
            let (auth, key) = auth_key(auth)?;
            return Ok(Keys::Ah(auth, key));
        }
        (IpsecProtocol::Esp, None, Some(_), None) => {
            "encryption without authentication, expected auth-trunc besides enc"
        }
        (IpsecProtocol::Esp, None, None, Some(_)) => {
            "no enc, expected one besides auth-trunc; without encryption \
             enc = { name = \"ecb(cipher_null)\", key = \"\" }"
        }
        (IpsecProtocol::Esp, ..) => "an SA of proto esp has either aead, or enc and auth-trunc",
        (IpsecProtocol::Ah, ..) => "an SA of proto ah has auth-trunc, and neither aead nor enc",
    };
    Err(Located::new(span.clone(), message))
}

fn aead_key(section: AeadSection) -> Result<(Aead, Secret), Located> {
    let AeadSection { name, key, icv } = section;
    let aead = named(&name, &Aead::ALL.map(|it| (it.name(), it)))?;
    check_icv("icv", &icv, Aead::from_name(aead.name(), *icv.get_ref()).is_some(), 128)?;
    let parts = "the key, then 4 octets of salt";
    Ok((aead, of_length(key, aead.name(), aead.key_lens(), parts)?))
}

fn cipher_key(section: EncSection) -> Result<(Cipher, Secret), Located> {
    let EncSection { name, key } = section;
    let cipher = match Cipher::from_name(name.get_ref()) {
        Some(cipher) => cipher,
        None => named(&name, &Cipher::ALL.map(|it| (it.name(), it)))?,
    };
    let parts = match cipher {
        Cipher::Null => "there is no encryption",
        Cipher::AesCbc => "the key alone",
        Cipher::AesCtr => "the key, then 4 octets of nonce",
    };
    Ok((cipher, of_length(key, cipher.name(), cipher.key_lens(), parts)?))
}

fn auth_key(section: AuthSection) -> Result<(Auth, Secret), Located> {
    let AuthSection { name, key, trunc } = section;
    let auth = named(&name, &Auth::ALL.map(|it| (it.name(), it)))?;
    let bits = auth.icv_len() as u32 * 8;
    check_icv("trunc", &trunc, *trunc.get_ref() == bits, bits)?;
    let (span, key) = (key.span(), key.into_inner().0);
    if key.is_empty() {
        let message = format!("a key of 0 octets for {}, expected at least 1", auth.name());
        return Err(Located::new(span, message));
    }
    Ok((auth, key))
}

fn named<T: Copy>(name: &Spanned<String>, all: &[(&str, T)]) -> Result<T, Located> {
    let found = all.iter().find(|(known, _)| known == name.get_ref());
    found.map(|(_, it)| *it).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        let (name, span, expected) = (name.get_ref(), name.span(), names.join(", "));
        Located::new(span, format!("unknown algorithm `{name}`, expected one of {expected}"))
    })
}

fn check_icv(
    what: &str,
    given: &Spanned<u32>,
    is_right: bool,
    expected: u32,
) -> Result<(), Located> {
    if is_right {
        return Ok(());
    }
    let message = format!("{what} is {}, expected {expected} bits", given.get_ref());
    Err(Located::new(given.span(), message))
}

/// A key, if it has one of the lengths of an algorithm. `parts`: what it consists of.
fn of_length(
    key: Spanned<super::key::Key>,
    algorithm: &str,
    lens: &[usize],
    parts: &str,
) -> Result<Secret, Located> {
    let (span, key) = (key.span(), key.into_inner().0);
    if lens.contains(&key.len()) {
        return Ok(key);
    }
    let expected: Vec<String> = lens.iter().map(ToString::to_string).collect();
    let expected = match expected.as_slice() {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        one => one.concat(),
    };
    let found = key.len();
    let message = format!("a key of {found} octets for {algorithm}, expected {expected}: {parts}");
    Err(Located::new(span, message))
}

/// `n`: its number in the file, from 1.
fn resolve_policy(policy: &Spanned<PolicySection>, n: u32) -> Result<Policy, Located> {
    let (span, policy) = (policy.span(), policy.get_ref());
    let given = [&policy.src, &policy.dst].map(|it| it.as_ref().map(|net| *net.get_ref()));
    let Some(family) = given.iter().flatten().map(|net| Family::of(net.addr)).next() else {
        let message = "a policy without src and dst, expected one, such as dst = \"0.0.0.0/0\"";
        return Err(Located::new(span, message));
    };
    let [src, dst] = [prefix(&policy.src, family)?, prefix(&policy.dst, family)?];
    let proto = policy.proto.map_or(Protocol(0), |proto| proto.0);
    let port = |given: &Option<Spanned<u16>>| match given {
        None => Ok((0, 0)),
        Some(port) if [Protocol::TCP, Protocol::UDP, Protocol::SCTP].contains(&proto) => {
            Ok((*port.get_ref(), u16::MAX))
        }
        Some(port) => {
            let message = "ports are of proto tcp, udp or sctp, expected one of these as proto";
            Err(Located::new(port.span(), message))
        }
    };
    let (sport, dport) = (port(&policy.sport)?, port(&policy.dport)?);
    let selector = Selector { dst, src, dport, sport, proto: proto.0, ifindex: 0 };
    let template = policy.tmpl.as_ref().map(template).transpose()?;
    Ok(Policy {
        index: n * INDEX_STEP + policy.dir.direction() as u32,
        priority: policy.priority,
        templates: template.into_iter().collect(),
        ..Policy::new(family, selector, policy.action.action())
    })
}

/// A prefix of a selector; none is the whole family.
fn prefix(given: &Option<Spanned<IpNet>>, family: Family) -> Result<Prefix, Located> {
    let Some(given) = given else { return Ok(Prefix { addr: unspecified(family), len: 0 }) };
    let (net, span) = (*given.get_ref(), given.span());
    if Family::of(net.addr) != family {
        return Err(Located::new(span, "src and dst of a policy are of one family"));
    }
    if net.network() != net {
        let message =
            format!("`{net}` has host bits set, expected the network `{}`", net.network());
        return Err(Located::new(span, message));
    }
    Ok(Prefix { addr: net.addr, len: net.len })
}

fn template(section: &Spanned<TemplateSection>) -> Result<Template, Located> {
    let (span, section) = (section.span(), section.get_ref());
    check_mode(section.mode.as_ref(), &span)?;
    check_families(&section.src, section.dst)?;
    let ends = [*section.src.get_ref(), section.dst];
    Ok(Template {
        spi: section.spi,
        is_optional: section.level == Level::Use,
        ..Template::tunnel(section.proto.number(), ends, section.reqid)
    })
}
