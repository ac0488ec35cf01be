//! What the kernel accepts, for the reference interpreter.

use super::*;

fn fits(reg: Reg, len: usize) -> bool {
    len > 0 && reg.0.is_multiple_of(4) && usize::from(reg.0) + len <= 64
}

/// Whether the kernel accepts the operands, and the expression is evaluated at all.
pub(super) fn is_valid(expr: &Expr) -> bool {
    match expr {
        Expr::Immediate { dreg, value } => fits(*dreg, value.len()) && value.len() <= 16,
        Expr::Cmp { sreg, data, .. } => fits(*sreg, data.len()) && data.len() <= 16,
        Expr::Range { sreg, from, to, .. } => {
            fits(*sreg, from.len()) && from.len() == to.len() && to.len() <= 16
        }
        Expr::Bitwise { sreg, dreg, len, op } => {
            let size = usize::from(*len);
            fits(*sreg, size)
                && fits(*dreg, size)
                && match op {
                    BitwiseOp::MaskXor { mask, xor } => {
                        size <= 16 && mask.len() == size && xor.len() == size
                    }
                    BitwiseOp::Lshift(bits) | BitwiseOp::Rshift(bits) => (1..32).contains(bits),
                    BitwiseOp::And(other) | BitwiseOp::Or(other) | BitwiseOp::Xor(other) => {
                        fits(*other, size)
                    }
                }
        }
        Expr::Byteorder { sreg, dreg, len, size } => {
            let known = [2, 4].contains(size) || (*size == 8 && *len == 8);
            fits(*sreg, (*len).into()) && fits(*dreg, (*len).into()) && known
        }
        Expr::Payload { dreg, len, .. } => fits(*dreg, (*len).into()),
        Expr::Exthdr { dreg, len, present, .. } => {
            fits(*dreg, if *present { 1 } else { (*len).into() })
        }
        Expr::Meta { key: MetaKey::Other(_), .. } => false,
        Expr::Meta { dreg, key: MetaKey::IifName | MetaKey::OifName } => fits(*dreg, 16),
        Expr::Meta { dreg, .. } => fits(*dreg, 4),
        Expr::Ct { dreg, .. } => fits(*dreg, 4),
        Expr::SetMark { sreg } => fits(*sreg, 4),
        Expr::SetPayload(set) => set.base != PayloadBase::Link && fits(set.sreg, set.len.into()),
        Expr::Objref { kind, .. } => *kind == OBJECT_COUNTER,
        Expr::Other(_) => false,
        _ => true,
    }
}

/// Whether lookups are evaluated.
pub(super) fn lookup_is_valid(table: &Table, expr: &Expr) -> bool {
    let Expr::Lookup { sreg, dreg, is_vmap, set, invert } = expr else { return false };
    let Some(set) = table.sets.iter().find(|known| known.name == *set) else { return false };
    let (key_len, data_len) = (usize::from(set.key_len), usize::from(set.data_len));
    let mut keyed = set.elements.iter().filter(|element| !element.is_catchall);
    let is_whole = |element: &&Element| {
        element.key.len() == key_len && element.key_end.as_ref().is_none_or(|k| k.len() == key_len)
    };
    let verdict = |element: &&Element| matches!(element.data, Some(Data::Verdict(_)));
    let starts = set.elements.iter().filter(|element| !element.is_interval_end);
    let verdicts = starts.clone().filter(verdict).count();
    let data = |element: &Element| match &element.data {
        Some(Data::Value(value)) => value.len() == data_len,
        _ => false,
    };
    if set.flags & SET_INTERVAL == 0 {
        if keyed.clone().any(|element| element.key_end.is_some() || element.is_interval_end) {
            return false;
        }
    } else if set.fields.len() > 1 || keyed.clone().any(|element| element.key_end.is_some()) {
        let len: usize = set.fields.iter().map(|len| usize::from(len.next_multiple_of(4))).sum();
        let odd = !set.fields.is_empty() && len != key_len;
        if odd || set.fields.contains(&0) || keyed.clone().any(|e| e.is_interval_end) {
            return false;
        }
    } else if key_len > 16 {
        return false;
    }
    set.unsupported.is_none()
        && set.flags & (SET_EVAL | SET_OBJECT) == 0
        && (1..=64).contains(&key_len)
        && data_len <= 64
        && keyed.all(|element| is_whole(&element))
        && (verdicts == 0 || (verdicts == starts.clone().count() && data_len == 0))
        && (data_len == 0 || starts.clone().all(data))
        && (verdicts == 0 || *is_vmap)
        && !(*is_vmap && (data_len > 0 || dreg.is_some() || *invert))
        && fits(*sreg, key_len)
        && dreg.is_none_or(|dreg| fits(dreg, data_len) && !*invert)
}
