//! Policies: the messages XFRM_MSG_NEWPOLICY of a dump.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use super::info::{PolicyInfo, TemplateInfo};
use super::{family, mark, mode, of_family, selector_of, xfrma};
use crate::control::netlink::message::{Attr, Message, u8_at, u32_at};
use crate::control::netlink::query::NlSock;
use crate::ipsec::{Action, Direction, Lifetime, Mark, Mode, Policy, Template};
use crate::wire::Protocol;

pub(super) const XFRM_MSG_GETPOLICY: u16 = 0x15;
/// Length of `struct xfrm_userpolicy_id`, of which all zeros request all policies, octets.
pub(super) const POLICY_ID_LEN: usize = 64;

const XFRM_POLICY_ALLOW: u8 = 0;
const XFRM_POLICY_ICMP: u8 = 2;
const XFRM_POLICY_TYPE_MAIN: u8 = 0;

/// What a dump has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policies {
    /// Those of directions in, out and fwd and of the main database, the newest first. Policies of sockets are left out:
    /// they do not apply to forwarded packets.
    pub list: Vec<(Direction, Policy)>,
    /// How many are of the database XFRM_POLICY_TYPE_SUB, or could not be read. What they do is not known.
    pub unknown: usize,
}

/// Reads them. `socket`: of NETLINK_XFRM.
///
/// # Errors
/// When the request fails.
pub fn read(socket: &mut NlSock) -> io::Result<Policies> {
    let mut policies = Policies::default();
    let parsed =
        socket.dump(XFRM_MSG_GETPOLICY, &[0; POLICY_ID_LEN], |message| Some(parse(message)))?;
    for parsed in parsed {
        match parsed {
            Parsed::Policy(direction, policy) => policies.list.push((direction, *policy)),
            Parsed::OfSocket => {}
            Parsed::Unknown => policies.unknown += 1,
        }
    }
    Ok(policies)
}

#[derive(Debug)]
enum Parsed {
    Policy(Direction, Box<Policy>),
    OfSocket,
    Unknown,
}

fn parse(message: &Message<'_>) -> Parsed {
    let Some(info) = PolicyInfo::parse(message.payload) else { return Parsed::Unknown };
    let direction = match info.direction {
        0 => Direction::In,
        1 => Direction::Out,
        2 => Direction::Fwd,
        // XFRM_POLICY_MAX and above.
        3.. => return Parsed::OfSocket,
    };
    parse_info(&info, message)
        .map_or(Parsed::Unknown, |policy| Parsed::Policy(direction, Box::new(policy)))
}

/// `None`: it is not of the main database, or malformed.
fn parse_info(info: &PolicyInfo, message: &Message<'_>) -> Option<Policy> {
    let family = family(info.selector.family)?;
    let mut policy = Policy {
        index: info.index,
        priority: info.priority,
        family,
        selector: selector_of(&info.selector, family),
        mark: Mark::default(),
        if_id: 0,
        action: match info.action {
            XFRM_POLICY_ALLOW => Action::Allow,
            _ => Action::Block,
        },
        has_icmp: info.flags & XFRM_POLICY_ICMP != 0,
        is_kernels: info.lifetime != Lifetime::INFINITE,
        templates: Vec::new(),
    };
    for Attr { kind, value, .. } in message.attrs(PolicyInfo::LEN) {
        match kind {
            xfrma::TMPL => {
                for template in value.chunks(TemplateInfo::LEN) {
                    match TemplateInfo::parse(template).and_then(|info| template_of(&info)) {
                        Some(template) => policy.templates.push(template),
                        None => policy.is_kernels = true,
                    }
                }
            }
            xfrma::SEC_CTX => policy.is_kernels = true,
            xfrma::POLICY_TYPE if u8_at(value, 0)? != XFRM_POLICY_TYPE_MAIN => return None,
            xfrma::MARK => policy.mark = mark(value)?,
            xfrma::IF_ID => policy.if_id = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(policy)
}

/// `None`: it is not ESP or AH in transport or tunnel mode.
fn template_of(info: &TemplateInfo) -> Option<Template> {
    let address = |octets| match family(info.family) {
        Some(family) => of_family(octets, family),
        None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let mode = match info.mode {
        mode::TRANSPORT => Mode::Transport,
        mode::TUNNEL => Mode::Tunnel,
        _ => return None,
    };
    let proto = Protocol(info.proto);
    (proto == Protocol::ESP || proto == Protocol::AH).then_some(())?;
    Some(Template {
        dst: address(info.dst),
        src: address(info.src),
        spi: info.spi,
        proto,
        mode,
        reqid: info.reqid,
        is_optional: info.optional != 0,
        aalgos: (info.aalgos != u32::MAX).then_some(info.aalgos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::netlink::message::Request;
    use crate::ipsec::{Family, Prefix};

    /// Offsets in `struct xfrm_userpolicy_info`, octets.
    const LIMITS: usize = 56;
    const PRIORITY: usize = 152;
    const INDEX: usize = 156;
    const DIRECTION: usize = 160;

    /// A policy for TCP to 198.51.100.0/24, port 80, of direction `direction`.
    fn info(direction: u8) -> Vec<u8> {
        let mut info = vec![0; PolicyInfo::LEN];
        info[..4].copy_from_slice(&[198, 51, 100, 0]);
        info[32..36].copy_from_slice(&[0, 80, 0xff, 0xff]);
        info[40..42].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        (info[42], info[44]) = (24, 6);
        info[48..52].copy_from_slice(&7u32.to_ne_bytes());
        info[LIMITS..LIMITS + 32].fill(0xff);
        info[PRIORITY..PRIORITY + 4].copy_from_slice(&1000u32.to_ne_bytes());
        info[INDEX..INDEX + 4].copy_from_slice(&9u32.to_ne_bytes());
        info[DIRECTION] = direction;
        info
    }

    fn parsed(info: &[u8], attrs: &[(u16, &[u8])]) -> Parsed {
        let request =
            attrs.iter().fold(Request::new(0, 0, info), |it, (kind, value)| it.attr(*kind, value));
        let octets = request.finish(0);
        let message = Message { kind: 0x13, flags: 0, seq: 0, payload: &octets[16..] };
        parse(&message)
    }

    fn policy(info: &[u8], attrs: &[(u16, &[u8])]) -> Policy {
        match parsed(info, attrs) {
            Parsed::Policy(_, policy) => *policy,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_fields_are_read() {
        let tunnel = {
            let mut tmpl = [0u8; TemplateInfo::LEN];
            tmpl[..4].copy_from_slice(&[192, 0, 2, 2]);
            tmpl[16..20].copy_from_slice(&[0, 0, 0x12, 0x34]);
            tmpl[20] = 50;
            tmpl[24..26].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            tmpl[28..32].copy_from_slice(&[192, 0, 2, 1]);
            tmpl[44..48].copy_from_slice(&5u32.to_ne_bytes());
            (tmpl[48], tmpl[50]) = (1, 1);
            tmpl[52..56].fill(0xff);
            tmpl
        };
        let words =
            |words: &[u32]| words.iter().flat_map(|it| it.to_ne_bytes()).collect::<Vec<_>>();
        let (mark, if_id) = (words(&[3, 0xf]), words(&[12]));
        let attrs: [(u16, &[u8]); 3] =
            [(xfrma::TMPL, &tunnel), (xfrma::MARK, &mark), (xfrma::IF_ID, &if_id)];
        let policy = policy(&info(1), &attrs);
        assert_eq!((policy.priority, policy.index, policy.if_id), (1000, 9, 12));
        assert_eq!((policy.family, policy.action), (Family::Ipv4, Action::Allow));
        assert_eq!(policy.mark, Mark { value: 3, mask: 0xf });
        let selector = policy.selector;
        let prefix = Prefix { addr: "198.51.100.0".parse().unwrap(), len: 24 };
        assert_eq!((selector.dst, selector.src.len), (prefix, 0));
        assert_eq!((selector.dport, selector.sport), ((80, 0xffff), (0, 0)));
        assert_eq!((selector.proto, selector.ifindex), (6, 7));
        assert!(!policy.is_kernels && !policy.has_icmp);
        let [template] = &policy.templates[..] else { panic!("{policy:?}") };
        assert_eq!((template.spi, template.reqid, template.mode), (0x1234, 5, Mode::Tunnel));
        assert_eq!(
            [template.src, template.dst].map(|it| it.to_string()),
            ["192.0.2.1", "192.0.2.2"]
        );
        assert!(template.is_optional && template.aalgos.is_none());
    }

    #[test]
    fn what_only_the_kernel_can_do_is_the_kernels() {
        let mut limited = info(2);
        limited[LIMITS..LIMITS + 8].copy_from_slice(&1000u64.to_ne_bytes());
        assert!(policy(&limited, &[]).is_kernels, "a limit of octets");
        let mut limited = info(2);
        limited[LIMITS + 40] = 1;
        assert!(policy(&limited, &[]).is_kernels, "a limit of seconds");
        assert!(policy(&info(2), &[(xfrma::SEC_CTX, &[0; 8])]).is_kernels);
        let mut ipcomp = [0u8; TemplateInfo::LEN];
        ipcomp[20] = 108;
        assert!(policy(&info(2), &[(xfrma::TMPL, &ipcomp)]).is_kernels);
        assert!(policy(&info(2), &[(xfrma::TMPL, &ipcomp[..40])]).is_kernels, "cut off");
        assert!(!policy(&info(2), &[]).is_kernels);
    }

    #[test]
    fn policies_of_sockets_do_not_count_and_others_are_unknown() {
        assert!(matches!(parsed(&info(3), &[]), Parsed::OfSocket));
        assert!(matches!(
            parsed(&info(0), &[(xfrma::POLICY_TYPE, &[1, 0, 0, 0, 0, 0])]),
            Parsed::Unknown
        ));
        assert!(matches!(parsed(&info(0)[..100], &[]), Parsed::Unknown));
        let mut family = info(0);
        family[40..42].fill(0);
        assert!(matches!(parsed(&family, &[]), Parsed::Unknown));
    }
}
