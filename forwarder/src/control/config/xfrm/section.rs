//! The keys of the `[xfrm]` section: words of `ip xfrm state` and `ip xfrm policy`.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use super::key::Key;
use crate::control::config::ipnet::IpNet;
use crate::ipsec::{Action, Direction};
use crate::wire::Protocol;

/// The `[xfrm]` section. Its keys are in it only until it is resolved.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::control::config) struct XfrmSection {
    /// `[[xfrm.state]]`.
    #[serde(default)]
    pub(super) state: Vec<Spanned<StateSection>>,
    /// `[[xfrm.policy]]`.
    #[serde(default)]
    pub(super) policy: Vec<Spanned<PolicySection>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct StateSection {
    pub src: Spanned<IpAddr>,
    pub dst: IpAddr,
    pub proto: IpsecProtocol,
    pub spi: Spanned<u32>,
    pub mode: Option<Spanned<String>>,
    #[serde(default)]
    pub reqid: u32,
    pub dir: Option<Spanned<StateDirection>>,
    pub aead: Option<AeadSection>,
    #[serde(alias = "auth")]
    pub auth_trunc: Option<AuthSection>,
    pub enc: Option<EncSection>,
    pub replay_window: Option<Spanned<u32>>,
    #[serde(default)]
    pub flag: Vec<Spanned<String>>,
    #[serde(default)]
    pub extra_flag: Vec<Spanned<String>>,
    pub encap: Option<Spanned<EncapSection>>,
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table like { name = \"rfc4106(gcm(aes))\", key = \"0x0102…\", icv = 128 }"
)]
pub(super) struct AeadSection {
    pub name: Spanned<String>,
    pub key: Spanned<Key>,
    /// Bits.
    pub icv: Spanned<u32>,
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table like { name = \"hmac(sha256)\", key = \"0x0102…\", trunc = 128 }"
)]
pub(super) struct AuthSection {
    pub name: Spanned<String>,
    pub key: Spanned<Key>,
    /// Bits.
    pub trunc: Spanned<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table like { name = \"cbc(aes)\", key = \"0x0102…\" }")]
pub(super) struct EncSection {
    pub name: Spanned<String>,
    pub key: Spanned<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EncapSection {
    #[serde(rename = "type")]
    pub kind: Spanned<String>,
    pub sport: u16,
    pub dport: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicySection {
    pub src: Option<Spanned<IpNet>>,
    pub dst: Option<Spanned<IpNet>>,
    pub proto: Option<UpperProtocol>,
    pub sport: Option<Spanned<u16>>,
    pub dport: Option<Spanned<u16>>,
    pub dir: PolicyDirection,
    #[serde(default)]
    pub priority: u32,
    #[serde(default)]
    pub action: ActionName,
    pub tmpl: Option<Spanned<TemplateSection>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TemplateSection {
    pub src: Spanned<IpAddr>,
    pub dst: IpAddr,
    pub proto: IpsecProtocol,
    #[serde(default)]
    pub spi: u32,
    #[serde(default)]
    pub reqid: u32,
    pub mode: Option<Spanned<String>>,
    #[serde(default)]
    pub level: Level,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum IpsecProtocol {
    Esp,
    Ah,
}

impl IpsecProtocol {
    pub fn number(self) -> Protocol {
        match self {
            IpsecProtocol::Esp => Protocol::ESP,
            IpsecProtocol::Ah => Protocol::AH,
        }
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StateDirection {
    In,
    Out,
}

impl StateDirection {
    pub fn direction(self) -> Direction {
        match self {
            StateDirection::In => Direction::In,
            StateDirection::Out => Direction::Out,
        }
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PolicyDirection {
    In,
    Out,
    Fwd,
}

impl PolicyDirection {
    pub fn direction(self) -> Direction {
        match self {
            PolicyDirection::In => Direction::In,
            PolicyDirection::Out => Direction::Out,
            PolicyDirection::Fwd => Direction::Fwd,
        }
    }
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ActionName {
    #[default]
    Allow,
    Block,
}

impl ActionName {
    pub fn action(self) -> Action {
        match self {
            ActionName::Allow => Action::Allow,
            ActionName::Block => Action::Block,
        }
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    #[default]
    Required,
    Use,
}

/// The protocol of a selector, by number or by one of the names in /etc/protocols.
#[derive(Clone, Copy)]
pub(super) struct UpperProtocol(pub Protocol);

impl<'de> Deserialize<'de> for UpperProtocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<UpperProtocol, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = UpperProtocol;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a protocol number from 1 to 255, or tcp, udp, icmp, ipv6-icmp, sctp")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<UpperProtocol, E> {
                let wrong = || E::invalid_value(de::Unexpected::Signed(number), &self);
                let number = u8::try_from(number).ok().filter(|number| *number != 0);
                number.map(|number| UpperProtocol(Protocol(number))).ok_or_else(wrong)
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<UpperProtocol, E> {
                Ok(UpperProtocol(match name {
                    "tcp" => Protocol::TCP,
                    "udp" => Protocol::UDP,
                    "icmp" => Protocol::ICMP,
                    "ipv6-icmp" => Protocol::ICMPV6,
                    "sctp" => Protocol::SCTP,
                    _ => return Err(E::invalid_value(de::Unexpected::Str(name), &self)),
                }))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
