//! Expressions that are not evaluated, and how nft writes them.

use super::ruleset::Reg;

/// An expression that this version does not decode or evaluate. Packets that reach it are left to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// As nft or iptables name it: `ct helper`, `limit`, `xt match hashlimit`.
    pub name: String,
    /// How nft writes it, if that is known: as far as the kernel does not change it.
    pub form: Option<Form>,
}

impl From<String> for Other {
    fn from(name: String) -> Other {
        Other { name, form: None }
    }
}

impl From<&str> for Other {
    fn from(name: &str) -> Other {
        Other::from(name.to_owned())
    }
}

/// How nft writes an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// Its text; none if that of another expression of the rule has it.
    pub parts: Vec<Part>,
    /// The text is not a statement, but the left side of one: what the expression writes to a register, octets, and their type.
    pub loads: Option<(Reg, u8, Type)>,
    /// nft leaves out a test for it in front of the text.
    pub implies: Option<Implied>,
}

/// What a text implies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Implied {
    /// A packet of IPv4.
    Ipv4,
    /// A packet of IPv6.
    Ipv6,
    /// TCP.
    Tcp,
}

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Itself.
    Text(String),
    /// What a register has: a constant of the type, data of a map, or what was loaded.
    Reg(Reg, Type),
    /// The same after a text; nothing if the register has what the one before has, too: data of one map.
    After(&'static str, Reg, Type),
    /// What the registers have that are the key of a set.
    Key(Reg, String),
    /// All fields in so many octets of registers.
    Fields(Reg, u8),
    /// A text for packets of IPv4 and one for those of IPv6, which a test before it tells; it is left out.
    OfFamily([String; 2]),
}

/// The type of a value in a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// 4 octets.
    Ipv4,
    /// 16 octets.
    Ipv6,
    /// The same; a constant in brackets.
    Bracketed,
    /// Either, by its length.
    Address,
    /// 2 octets in network byte order.
    Port,
    /// In host byte order.
    Number,
    /// 4 octets in host byte order.
    Mark,
    /// A queueing class, 4 octets in host byte order.
    Priority,
    /// Filled up with NUL.
    Name,
    /// Not known.
    Unknown,
}
