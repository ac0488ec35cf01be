//! Expressions that are not evaluated, as their [`Form`] says.

use super::one_line;
use super::operand::{Header, L3, Left, Operand, What, padded};
use super::statement::{RulePrinter, concatenated};
use super::value::{Kind, Order};
use crate::netfilter::nft::other::{Form, Implied, Part, Type};
use crate::netfilter::nft::ruleset::{Reg, SET_MAP};

/// A text, and what was used for it.
#[derive(Debug, Default)]
struct Written {
    text: String,
    regs: Vec<Reg>,
    lefts: Vec<Left>,
    /// Headers that it implies.
    headers: Vec<Header>,
}

impl RulePrinter<'_, '_> {
    /// Prints an expression, or remembers what it loads. Returns whether its registers have what its form needs.
    pub(super) fn other(&mut self, at: usize, form: &Form) -> bool {
        if form.parts.is_empty() {
            self.hide(at);
            return true;
        }
        let Some(Written { text, regs, lefts, headers }) = self.written(form) else { return false };
        headers.into_iter().for_each(|header| self.hide_dependencies(header));
        let Some((dreg, octets, of)) = form.loads else {
            self.show_or_fail(at, &regs, Some((text, lefts)));
            return true;
        };
        lefts.iter().for_each(|left| self.hide_dependencies(left.header));
        let operands = regs.iter().filter_map(|reg| self.registers.get(*reg));
        let from = operands.flat_map(|operand| operand.from.iter().copied()).chain([at]).collect();
        let len = usize::from(octets);
        let what = What::Text(text, kind(of, len));
        self.registers.set(dreg, Operand { what, len, mask: None, order: Order::Own, from });
        true
    }

    fn written(&self, form: &Form) -> Option<Written> {
        let mut to = Written::default();
        to.headers.extend(form.implies.map(|implied| match implied {
            Implied::Ipv4 => Header::Network(L3::Ip),
            Implied::Ipv6 => Header::Network(L3::Ip6),
            Implied::Tcp => Header::Transport(6),
        }));
        for part in &form.parts {
            match part {
                Part::Text(text) => to.text += &one_line(text),
                Part::Reg(reg, of) => self.held(*reg, *of, &mut to)?,
                Part::After(_, reg, _) if self.is_part(*reg, &to.regs) => {}
                Part::After(text, reg, of) => {
                    to.text += text;
                    self.held(*reg, *of, &mut to)?;
                }
                Part::Key(reg, set) => {
                    let set = *self.of.sets.get(set.as_str())?;
                    let (regs, fields) = self.fields(*reg, set.key_len.into())?;
                    self.note_type(set, &fields, None);
                    to.add_fields(regs, fields);
                }
                Part::Fields(reg, len) => {
                    let (regs, fields) = self.fields(*reg, (*len).into())?;
                    to.add_fields(regs, fields);
                }
                Part::OfFamily([v4, v6]) => {
                    let l3 = self.known.l3?;
                    to.text += if l3 == L3::Ip { v4 } else { v6 };
                    to.headers.push(Header::Network(l3));
                }
            }
        }
        Some(to)
    }

    /// What a register has.
    fn held(&self, reg: Reg, of: Type, to: &mut Written) -> Option<()> {
        let operand = self.registers.get(reg)?;
        let kind = kind(of, operand.len);
        let text = match &operand.what {
            What::Value(value) => {
                let text = kind.text(&kind.to_network(value, operand.order));
                if of == Type::Bracketed { format!("[{text}]") } else { text }
            }
            What::Map { key, set, fields } if set.flags & SET_MAP != 0 => {
                // Data of several fields have no type here.
                let data = (of != Type::Unknown && octets(of) == Some(set.data_len.into()))
                    .then_some(kind);
                to.lefts.extend_from_slice(fields);
                self.mapped(key, set, fields, data)
            }
            _ => {
                let left = self.known.left(operand)?;
                let text = left.masked();
                to.lefts.push(left);
                text
            }
        };
        to.text += &text;
        to.regs.push(reg);
        Some(())
    }

    /// Whether a register has a part of what one of `regs` has, after its beginning.
    fn is_part(&self, reg: Reg, regs: &[Reg]) -> bool {
        let at = usize::from(reg.0);
        regs.iter().any(|first| {
            let from = usize::from(first.0);
            let len = self.registers.get(*first).map_or(0, |operand| padded(operand.len));
            from < at && at < from + len
        })
    }
}

impl Written {
    fn add_fields(&mut self, regs: Vec<Reg>, fields: Vec<Left>) {
        self.text += &concatenated(&fields);
        self.regs.extend(regs);
        self.lefts.extend(fields);
    }
}

/// The type of a value of so many octets.
fn kind(of: Type, len: usize) -> Kind {
    match (of, len) {
        (Type::Ipv4, _) | (Type::Address, 4) => Kind::Ipv4,
        (Type::Ipv6 | Type::Bracketed, _) | (Type::Address, 16) => Kind::Ipv6,
        (Type::Port, _) => Kind::Port,
        (Type::Number, _) => Kind::HostNumber,
        (Type::Mark, _) => Kind::Mark,
        (Type::Priority, _) => Kind::Priority,
        (Type::Name, _) => Kind::IfName,
        (Type::Address | Type::Unknown, _) => Kind::Hex,
    }
}

/// Octets of the data of a map.
fn octets(of: Type) -> Option<usize> {
    match of {
        Type::Ipv4 | Type::Number | Type::Mark | Type::Priority => Some(4),
        Type::Ipv6 | Type::Bracketed | Type::Name => Some(16),
        Type::Port => Some(2),
        Type::Address | Type::Unknown => None,
    }
}
