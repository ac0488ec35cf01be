//! The statements of a rule, made of its expressions in order.

use super::elements::{elements, range};
use super::names::{self, find};
use super::operand::{
    Header, Known, L3, Left, Operand, Registers, Source, What, combined, padded, prefix,
};
use super::value::{Kind, Order, flags, number};
use super::{Counts, Printer, SetType, one_line, verdict};
use crate::control::nftables::netlink_text;
use crate::netfilter::nft::other::Other;
use crate::netfilter::nft::ruleset::{
    BitwiseOp, CmpOp, Expr, Family, MetaKey, Reg, Rule, SET_ANONYMOUS, SET_MAP, Set, SetPayload,
};

/// Prints one rule.
pub(super) struct RulePrinter<'p, 'a> {
    pub(super) of: &'p Printer<'a>,
    exprs: &'a [Expr],
    counts: &'p Counts<'p>,
    pub(super) registers: Registers<'a>,
    pub(super) known: Known,
    /// `None`: one that a later statement implies.
    statements: Vec<Option<String>>,
    /// Positions of the statements that test for headers.
    dependencies: Vec<(Header, usize)>,
    /// Expressions that are part of a statement.
    is_shown: Vec<bool>,
}

impl<'p, 'a> RulePrinter<'p, 'a> {
    pub(super) fn new(of: &'p Printer<'a>, rule: &'a Rule, counts: &'p Counts<'p>) -> Self {
        RulePrinter {
            of,
            exprs: &rule.exprs,
            counts,
            registers: Registers::default(),
            known: Known::of(of.table.family),
            statements: Vec::new(),
            dependencies: Vec::new(),
            is_shown: vec![false; rule.exprs.len()],
        }
    }

    /// The statements in order.
    pub(super) fn statements(mut self) -> Vec<String> {
        let mut at = 0;
        while let Some(expr) = self.exprs.get(at) {
            at += self.expr(at, expr);
        }
        self.show_pending(at);
        self.statements.into_iter().flatten().collect()
    }

    /// The name of what the expression at a position loads or compares: the left side of a comparison, for example `ip dscp`.
    /// `None`: it does neither, or that has no known form.
    pub(super) fn operand(mut self, position: usize) -> Option<String> {
        let mut at = 0;
        while let Some(expr) = self.exprs.get(at).filter(|_| at < position) {
            at += self.expr(at, expr);
        }
        let reg = match self.exprs.get(position)? {
            Expr::Payload { dreg: reg, .. }
            | Expr::Exthdr { dreg: reg, .. }
            | Expr::Meta { dreg: reg, .. }
            | Expr::Ct { dreg: reg, .. }
            | Expr::Fib { dreg: reg, .. }
            | Expr::Xfrm { dreg: reg, .. } => *reg,
            Expr::Cmp { sreg, .. } | Expr::Range { sreg, .. } => {
                return Some(self.known.left(self.registers.get(*sreg)?)?.text);
            }
            // Of a key of several fields it is not known which one is meant.
            Expr::Lookup { sreg, set, .. } => {
                let left = self.known.left(self.registers.get(*sreg)?)?;
                let set = self.of.sets.get(set.as_str())?;
                return (left.len == usize::from(set.key_len)).then_some(left.text);
            }
            _ => return None,
        };
        let named = |printer: &Self| Some(printer.known.left(printer.registers.get(reg)?)?.text);
        self.expr(position, self.exprs.get(position)?);
        let whole = named(&self);
        // A field that is not whole octets is known by the mask after it.
        if let Some(mask @ Expr::Bitwise { .. }) = self.exprs.get(position + 1) {
            self.expr(position + 1, mask);
        }
        named(&self).or(whole)
    }

    /// Prints what was loaded before an expression and is not part of a statement.
    fn show_pending(&mut self, before: usize) {
        for (is_shown, expr) in self.is_shown.iter_mut().zip(self.exprs).take(before) {
            if !std::mem::replace(is_shown, true) {
                self.statements.push(Some(brackets(expr)));
            }
        }
    }

    /// Prints an expression, or remembers what it loads. Returns the number of expressions.
    fn expr(&mut self, at: usize, expr: &'a Expr) -> usize {
        match expr {
            Expr::Payload { dreg, base, offset, len } => {
                self.load(*dreg, What::Payload { base: *base, offset: *offset }, (*len).into(), at);
            }
            Expr::Exthdr { dreg, op, kind, offset, len, present } => {
                let (op, kind, offset, present) = (*op, *kind, *offset, *present);
                self.load(*dreg, What::Exthdr { op, kind, offset, present }, (*len).into(), at);
            }
            Expr::Meta { dreg, key } => self.load(*dreg, What::Meta(*key), meta_len(*key), at),
            Expr::Fib { dreg, query } => self.load(*dreg, What::Fib(*query), query.octets(), at),
            Expr::Xfrm { dreg, query } => {
                self.load(*dreg, What::Xfrm(*query), query.octets(), at);
            }
            Expr::Ct { dreg, key } => self.load(*dreg, What::Ct(*key), key.octets(), at),
            Expr::Immediate { dreg, value } => {
                self.load(*dreg, What::Value(value), value.len(), at);
            }
            Expr::Bitwise { sreg, dreg, len, op } => self.bitwise(at, *sreg, *dreg, *len, op),
            Expr::Byteorder { sreg, dreg, len, size } => {
                self.byteorder(at, *sreg, *dreg, *len, *size);
            }
            Expr::Cmp { sreg, op, data } => return self.compare(at, *sreg, *op, data),
            Expr::Range { sreg, invert, from, to } => {
                let text = self.left(*sreg, from.len()).filter(|left| left.mask.is_none());
                let text = text.map(|left| {
                    let op = if *invert { "!= " } else { "" };
                    let text = format!("{} {op}{}", left.text, between(&left, from, to));
                    (text, vec![left])
                });
                self.show_or_fail(at, &[*sreg], text);
            }
            Expr::Lookup { sreg, dreg, is_vmap, set, invert } => {
                self.lookup(at, *sreg, *dreg, *is_vmap, set, *invert);
            }
            Expr::SetMark { sreg } => {
                let text = self.mark(*sreg).map(|text| (format!("meta mark set {text}"), vec![]));
                self.show_or_fail(at, &[*sreg], text);
            }
            Expr::SetCtMark { sreg } => {
                let text = self.mark(*sreg).map(|text| (format!("ct mark set {text}"), vec![]));
                self.show_or_fail(at, &[*sreg], text);
            }
            Expr::SetPayload(set) => {
                let text = self.set_payload(set);
                self.show_or_fail(at, &[set.sreg], text);
            }
            // Not in nft's syntax; they use no register.
            Expr::Xt(_) | Expr::Connmark(_) | Expr::Mangle(_) => self.show(at, brackets(expr)),
            Expr::Counter { .. } => self.show(
                at,
                match (self.counts)(at) {
                    Some((packets, octets)) => format!("counter packets {packets} bytes {octets}"),
                    None => "counter".into(),
                },
            ),
            Expr::Objref { kind, name } => {
                let text = match find(names::OBJECTS, u128::from(*kind)) {
                    Some(kind @ ("ct helper" | "ct timeout")) => {
                        format!("{kind} set \"{}\"", one_line(name))
                    }
                    Some(kind) => format!("{kind} name \"{}\"", one_line(name)),
                    None => brackets(expr),
                };
                self.show(at, text);
            }
            Expr::Verdict(of) => self.show(at, verdict(of)),
            Expr::Notrack => self.show(at, "notrack".into()),
            Expr::Other(Other { form: Some(form), .. }) if self.other(at, form) => {}
            Expr::Other(_) => {
                // It may read and write any register.
                self.show_pending(at);
                self.show(at, brackets(expr));
                self.registers.clear_all();
            }
        }
        1
    }

    fn load(&mut self, dreg: Reg, what: What<'a>, len: usize, at: usize) {
        self.registers
            .set(dreg, Operand { what, len, mask: None, order: Order::Own, from: vec![at] });
    }

    fn show(&mut self, at: usize, text: String) {
        self.hide(at);
        self.statements.push(Some(text));
    }

    /// Another statement has the expression.
    pub(super) fn hide(&mut self, at: usize) {
        if let Some(is_shown) = self.is_shown.get_mut(at) {
            *is_shown = true;
        }
    }

    /// Prints a statement, with the left sides that it contains; without one, the expression and those that made
    /// its operands in brackets.
    pub(super) fn show_or_fail(
        &mut self,
        at: usize,
        sregs: &[Reg],
        text: Option<(String, Vec<Left>)>,
    ) {
        let operands = sregs.iter().filter_map(|reg| self.registers.get(*reg));
        let from: Vec<usize> = operands.flat_map(|operand| operand.from.iter().copied()).collect();
        for from in &from {
            if let Some(is_shown) = self.is_shown.get_mut(*from) {
                *is_shown = true;
            }
        }
        match text {
            Some((text, lefts)) => {
                lefts.iter().for_each(|left| self.hide_dependencies(left.header));
                self.show(at, text);
            }
            None => {
                for from in from {
                    self.statements.extend(self.exprs.get(from).map(|expr| Some(brackets(expr))));
                }
                let text = self.exprs.get(at).map(brackets).unwrap_or_default();
                self.show(at, text);
            }
        }
    }

    /// Removes tests for the headers that a name implies.
    pub(super) fn hide_dependencies(&mut self, header: Header) {
        let is_implied = |test: Header| match (header, test) {
            // `icmp type` is of IPv4.
            (Header::Transport(1), Header::Network(L3::Ip)) => true,
            (Header::Transport(58), Header::Network(L3::Ip6)) => true,
            _ => header == test && header != Header::None,
        };
        let statements = &mut self.statements;
        self.dependencies.retain(|(test, at)| {
            let is_implied = is_implied(*test);
            if let (true, Some(statement)) = (is_implied, statements.get_mut(*at)) {
                *statement = None;
            }
            !is_implied
        });
    }

    /// The left side that a register holds.
    fn left(&self, sreg: Reg, len: usize) -> Option<Left> {
        let operand = self.registers.get(sreg)?;
        let left = self.known.left(operand)?;
        (left.len == len).then_some(left)
    }

    fn compare(&mut self, at: usize, sreg: Reg, op: CmpOp, data: &'a [u8]) -> usize {
        if let (CmpOp::Gte, Some(Expr::Cmp { sreg: second, op: CmpOp::Lte, data: to })) =
            (op, self.exprs.get(at + 1))
            && (*second, to.len()) == (sreg, data.len())
            && let Some(left) = self.left(sreg, data.len()).filter(|left| left.mask.is_none())
        {
            let text = format!("{} {}", left.text, between(&left, data, to));
            self.show_or_fail(at, &[sreg], Some((text, vec![left])));
            if let Some(is_shown) = self.is_shown.get_mut(at + 1) {
                *is_shown = true;
            }
            return 2;
        }
        if op == CmpOp::Eq && self.compare_fields(at, sreg, data).is_some() {
            return 1;
        }
        let left = self.registers.get(sreg).and_then(|operand| self.comparable(operand, data));
        let text = left.map(|left| (comparison(&left, op, data), vec![left]));
        let left = text.as_ref().map(|(_, lefts)| lefts.clone());
        self.show_or_fail(at, &[sreg], text);
        if let (CmpOp::Eq, Some([left])) = (op, left.as_deref()) {
            self.learn(left, data);
        }
        1
    }

    /// The left side of a comparison: the name of an interface may be compared up to a length.
    fn comparable(&self, operand: &Operand<'_>, data: &[u8]) -> Option<Left> {
        let left = self.known.left(operand)?;
        let is_name = left.kind == Kind::IfName && left.mask.is_none() && data.len() <= left.len;
        // nft compares a whole register.
        let is_padded = left.kind == Kind::Presence && data.len() == padded(left.len);
        (left.len == data.len() || is_name || is_padded).then_some(left)
    }

    /// Prints the comparison of several adjacent header fields at once.
    fn compare_fields(&mut self, at: usize, sreg: Reg, data: &[u8]) -> Option<()> {
        let operand = self.registers.get(sreg)?.clone();
        let What::Payload { base, mut offset } = operand.what else { return None };
        if operand.mask.is_some() || operand.order != Order::Own || operand.len != data.len() {
            return None;
        }
        self.known.first_field(base, offset, data.len())?;
        let mut rest = data;
        while !rest.is_empty() {
            let len = self.known.first_field(base, offset, rest.len()).unwrap_or(rest.len());
            let (now, later) = rest.split_at_checked(len)?;
            let part = Operand { what: What::Payload { base, offset }, len, ..operand.clone() };
            let left = self.known.left(&part)?;
            let text = comparison(&left, CmpOp::Eq, now);
            self.show_or_fail(at, &[sreg], Some((text, vec![left.clone()])));
            self.learn(&left, now);
            (rest, offset) = (later, offset + len as u32);
        }
        Some(())
    }

    /// Notes what a test for equality, the last statement, tells of the packet.
    fn learn(&mut self, left: &Left, data: &[u8]) {
        let value = left.value(data);
        let Some(value) = number(&value).filter(|_| left.mask.is_none()) else { return };
        let l3 = |ip, ip6| match value {
            value if value == ip => Some(L3::Ip),
            value if value == ip6 => Some(L3::Ip6),
            _ => None,
        };
        let in_family =
            |of: L3| self.of.table.family == if of == L3::Ip { Family::Ip } else { Family::Ip6 };
        let header = match left.source {
            Source::NfProto | Source::EtherType => {
                self.known.l3 = match left.source {
                    Source::NfProto => l3(2, 10),
                    _ => l3(0x0800, 0x86dd),
                };
                self.known.l3.map(Header::Network)
            }
            Source::L4Proto | Source::Protocol(_) => {
                self.known.l4 = u8::try_from(value).ok();
                // In other families it also tests for the network header.
                let only_l4 = match left.source {
                    Source::Protocol(of) => in_family(of),
                    _ => true,
                };
                self.known.l4.filter(|_| only_l4).map(Header::Transport)
            }
            Source::IifType => (value == 1).then_some(Header::Link),
            Source::IcmpType => {
                self.known.icmp_type = u8::try_from(value).ok();
                None
            }
            Source::Other => None,
        };
        if let (Some(header), Some(at)) = (header, self.statements.len().checked_sub(1)) {
            self.dependencies.push((header, at));
        }
    }

    fn bitwise(&mut self, at: usize, sreg: Reg, dreg: Reg, len: u8, op: &'a BitwiseOp) {
        let made = self.registers.get(sreg).filter(|operand| operand.len == usize::from(len));
        let made = made.and_then(|operand| {
            masked(operand, op)
                .or_else(|| self.computed(operand, op))
                .or_else(|| changed(operand, op))
        });
        self.make(at, sreg, dreg, len, made);
    }

    /// A mark with constants.
    fn computed(&self, operand: &Operand<'a>, op: &BitwiseOp) -> Option<Operand<'a>> {
        let left = self.known.left(operand)?;
        if left.kind != Kind::Mark || operand.order != Order::Own {
            return None;
        }
        let word = |octets: &[u8]| octets.try_into().ok().map(u32::from_ne_bytes);
        let text = left.masked();
        let text = match op {
            BitwiseOp::MaskXor { mask, xor } => combined(&text, word(mask)?, word(xor)?),
            BitwiseOp::Lshift(bits) => format!("{text} << {bits}"),
            BitwiseOp::Rshift(bits) => format!("{text} >> {bits}"),
            _ => return None,
        };
        Some(Operand { what: What::Text(text, Kind::Mark), mask: None, ..operand.clone() })
    }

    fn byteorder(&mut self, at: usize, sreg: Reg, dreg: Reg, len: u8, size: u8) {
        let is_whole = |operand: &&Operand<'_>| {
            operand.len == usize::from(len) && size == len && operand.mask.is_none()
        };
        let swapped = |operand: &Operand<'a>| Operand {
            order: match operand.order {
                Order::Own => Order::Swapped,
                Order::Swapped => Order::Own,
            },
            ..operand.clone()
        };
        let made = self.registers.get(sreg).filter(is_whole).map(swapped);
        self.make(at, sreg, dreg, len, made);
    }

    /// Writes a register; `None`: with what has no known form.
    fn make(&mut self, at: usize, sreg: Reg, dreg: Reg, len: u8, made: Option<Operand<'a>>) {
        match made {
            Some(mut operand) => {
                operand.from.push(at);
                self.registers.set(dreg, operand);
            }
            None => {
                self.show_or_fail(at, &[sreg], None);
                self.registers.clear(dreg, len.into());
            }
        }
    }

    fn lookup(
        &mut self,
        at: usize,
        sreg: Reg,
        dreg: Option<Reg>,
        is_vmap: bool,
        name: &'a str,
        invert: bool,
    ) {
        let found = self.of.sets.get(name).copied();
        let (sregs, fields) = found
            .and_then(|set| self.fields(sreg, set.key_len.into()))
            .unwrap_or((vec![sreg], vec![]));
        let key = concatenated(&fields);
        match (found, dreg) {
            (Some(set), Some(dreg)) if !fields.is_empty() => {
                fields.iter().for_each(|left| self.hide_dependencies(left.header));
                self.note_type(set, &fields, None);
                let operands = sregs.iter().filter_map(|reg| self.registers.get(*reg));
                let from = operands.flat_map(|operand| operand.from.iter().copied()).chain([at]);
                let what = What::Map { key, set, fields };
                let (len, from) = (set.data_len.into(), from.collect());
                self.registers
                    .set(dreg, Operand { what, len, mask: None, order: Order::Own, from });
            }
            (Some(set), None) if !fields.is_empty() => {
                self.note_type(set, &fields, None);
                let op = match (is_vmap, invert) {
                    (true, _) => "vmap ",
                    (false, true) => "!= ",
                    (false, false) => "",
                };
                let text = format!("{key} {op}{}", self.set(set, &fields, None));
                self.show_or_fail(at, &sregs, Some((text, fields)));
            }
            _ => {
                self.show_or_fail(at, &sregs, None);
                if let Some(dreg) = dreg {
                    self.registers.clear(dreg, found.map_or(64, |set| set.data_len.into()));
                }
            }
        }
    }

    /// The fields of a key of so many octets, from a register on, with their registers.
    pub(super) fn fields(&self, sreg: Reg, len: usize) -> Option<(Vec<Reg>, Vec<Left>)> {
        let (mut at, mut regs, mut fields) = (usize::from(sreg.0), Vec::new(), Vec::new());
        let end = at + padded(len);
        while at < end {
            let left = self.known.left(self.registers.at(at)?)?;
            // It is a whole key, or one of several fields.
            if left.len == 0 || at + padded(left.len) > end {
                return None;
            }
            regs.push(Reg(at as u8));
            at += padded(left.len);
            fields.push(left);
        }
        let is_alone = fields.len() == 1;
        (!is_alone || fields.iter().all(|left| left.len == len)).then_some((regs, fields))
    }

    pub(super) fn note_type(&self, set: &'a Set, fields: &[Left], data: Option<Kind>) {
        if set.flags & SET_ANONYMOUS == 0 {
            let mut types = self.of.types.borrow_mut();
            let of =
                types.entry(&set.name).or_insert_with(|| SetType { fields: fields.to_vec(), data });
            of.data = of.data.or(data);
        }
    }

    /// The name of a set, or the elements of an anonymous one.
    fn set(&self, set: &Set, fields: &[Left], data: Option<Kind>) -> String {
        match (set.flags & SET_ANONYMOUS != 0, &set.unsupported) {
            (false, _) => format!("@{}", one_line(&set.name)),
            // Not all elements are known.
            (true, Some(_)) => "{ … }".into(),
            (true, None) => format!("{{ {} }}", elements(set, fields, data).join(", ")),
        }
    }

    /// Data of a map, by the text of its key. `data`: their type.
    pub(super) fn mapped(
        &self,
        key: &str,
        set: &'a Set,
        fields: &[Left],
        data: Option<Kind>,
    ) -> String {
        self.note_type(set, fields, data);
        format!("{key} map {}", self.set(set, fields, data))
    }

    /// What is written into the packet: a constant or the data of a map into a field, or a constant into bits of what
    /// was read from the same place.
    fn set_payload(&self, set: &SetPayload) -> Option<(String, Vec<Left>)> {
        let len = usize::from(set.len);
        let (base, offset) = (set.base, set.offset);
        let written = self.registers.get(set.sreg)?;
        if written.len != len || written.order != Order::Own {
            return None;
        }
        let field = |mask: Option<Vec<u8>>| {
            let (order, from) = (Order::Own, Vec::new());
            let place = Operand { what: What::Payload { base, offset }, len, mask, order, from };
            self.known.left(&place).filter(|left| left.mask.is_none() && left.len == len)
        };
        let part = |mask: &[u8], xor: &[u8]| {
            let is_constant = mask.iter().zip(xor).all(|(mask, xor)| mask & xor == 0);
            let left = field(Some(mask.iter().map(|octet| !octet).collect()))?;
            is_constant.then(|| (left.value_text(xor), left))
        };
        let is_same = |of: &(_, _)| *of == (base, offset);
        let (value, left) = match &written.what {
            What::Value(value) => {
                let left = field(None)?;
                (left.value_text(value), left)
            }
            What::Changed { base, offset, mask, xor } if is_same(&(*base, *offset)) => {
                part(mask, xor)?
            }
            What::Payload { base, offset } if is_same(&(*base, *offset)) => {
                part(written.mask.as_deref()?, &vec![0; len])?
            }
            What::Map { key, set, fields } if set.flags & SET_MAP != 0 => {
                let left = field(None)?;
                (self.mapped(key, set, fields, Some(left.kind)), left)
            }
            _ => return None,
        };
        Some((format!("{} set {value}", left.text), vec![left]))
    }

    /// The new mark.
    fn mark(&self, sreg: Reg) -> Option<String> {
        let operand = self.registers.get(sreg).filter(|operand| operand.order == Order::Own)?;
        match &operand.what {
            What::Value(value) if value.len() == 4 => {
                Some(Kind::Mark.text(&Kind::Mark.to_network(value, Order::Own)))
            }
            What::Map { key, set, fields } if set.flags & SET_MAP != 0 => {
                Some(self.mapped(key, set, fields, Some(Kind::Mark)))
            }
            _ => {
                let left = self.known.left(operand)?;
                let is_number = matches!(operand.what, What::Text(..));
                (left.kind == Kind::Mark || is_number).then(|| left.masked())
            }
        }
    }
}

/// The text of fields, one after the other.
pub(super) fn concatenated(fields: &[Left]) -> String {
    fields.iter().map(Left::masked).collect::<Vec<String>>().join(" . ")
}

/// A part of the packet of which bits are changed.
fn changed<'a>(operand: &Operand<'a>, op: &'a BitwiseOp) -> Option<Operand<'a>> {
    let (BitwiseOp::MaskXor { mask, xor }, What::Payload { base, offset }) = (op, &operand.what)
    else {
        return None;
    };
    let is_plain = operand.mask.is_none() && operand.order == Order::Own;
    let what = What::Changed { base: *base, offset: *offset, mask, xor };
    is_plain.then(|| Operand { what, ..operand.clone() })
}

fn brackets(expr: &Expr) -> String {
    one_line(&netlink_text::expr(expr))
}

/// Octets that a key writes.
fn meta_len(key: MetaKey) -> usize {
    match key {
        MetaKey::Protocol | MetaKey::IifType | MetaKey::OifType => 2,
        MetaKey::IifName | MetaKey::OifName => 16,
        MetaKey::NfProto | MetaKey::L4Proto | MetaKey::PktType | MetaKey::SecPath => 1,
        // NFT_META_IIFKIND, _OIFKIND, _SDIFNAME.
        MetaKey::Other(26 | 27 | 34) => 16,
        _ => 4,
    }
}

/// An operand with a mask.
fn masked<'a>(operand: &Operand<'a>, op: &BitwiseOp) -> Option<Operand<'a>> {
    let BitwiseOp::MaskXor { mask, xor } = op else { return None };
    let is_mask = xor.iter().all(|octet| *octet == 0) && mask.len() == operand.len;
    let is_loaded = matches!(
        operand.what,
        What::Payload { .. } | What::Exthdr { .. } | What::Meta(_) | What::Ct(_) | What::Xfrm(_)
    );
    (is_mask && is_loaded && operand.mask.is_none())
        .then(|| Operand { mask: Some(mask.clone()), ..operand.clone() })
}

/// A range; unlike [`range`] never as a prefix.
fn between(left: &Left, from: &[u8], to: &[u8]) -> String {
    match left.kind.is_address() {
        true => format!("{}-{}", left.value_text(from), left.value_text(to)),
        false => range(left, from, to),
    }
}

fn comparison(left: &Left, op: CmpOp, data: &[u8]) -> String {
    let sign = match op {
        CmpOp::Eq => "",
        CmpOp::Neq => "!= ",
        CmpOp::Lt => "< ",
        CmpOp::Lte => "<= ",
        CmpOp::Gt => "> ",
        CmpOp::Gte => ">= ",
    };
    let (text, value) = (&left.text, left.value(data));
    let flag_names = left.kind.flag_names();
    let is_flags = flag_names.is_some();
    let Some(mask) = &left.mask else {
        let sign = if is_flags && op == CmpOp::Eq { "== " } else { sign };
        return format!("{text} {sign}{}", left.value_text(data));
    };
    if let (CmpOp::Eq | CmpOp::Neq, Some(prefix)) = (op, prefix(left, &value)) {
        return format!("{text} {sign}{prefix}");
    }
    let is_zero = value.iter().all(|octet| *octet == 0);
    let list = |octets: &[u8]| flags(flag_names.unwrap_or(&[]), octets).join(",");
    match op {
        CmpOp::Neq if is_flags && is_zero => format!("{text} {}", list(mask)),
        CmpOp::Eq if is_flags && is_zero => format!("{text} ! {}", list(mask)),
        CmpOp::Eq | CmpOp::Neq if is_flags => {
            format!("{text} {sign}{} / {}", list(&value), list(mask))
        }
        CmpOp::Eq => format!("{} == {}", left.masked(), left.kind.text(&value)),
        _ => format!("{} {sign}{}", left.masked(), left.kind.text(&value)),
    }
}
