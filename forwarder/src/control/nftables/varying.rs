//! Which part of a rule differs between packets of a connection, in nft's words.

use std::ops::Range;

use super::mismatch::mismatch;
use super::netlink_text;
use super::print::{Printer, one_line};
use crate::netfilter::nft::carried_rules::By;
use crate::netfilter::nft::ruleset::{Expr, Rule, Set, Table};

/// Why a rule is evaluated for each packet: what differs, for example `ip dscp`. `None`: the rule is in a chain at ingress.
pub fn reason<'a>(printer: &Printer<'a>, table: &Table, rule: &'a Rule, by: &By) -> Option<String> {
    match by {
        By::Exprs(Some(exprs)) => Some(expression(printer, table, rule, exprs)),
        By::Exprs(None) => Some("an expression".to_owned()),
        By::Ingress => None,
    }
}

/// The expressions at these positions of a rule: what a load has, or else the statement.
pub fn expression<'a>(
    printer: &Printer<'a>,
    table: &Table,
    rule: &'a Rule,
    exprs: &Range<usize>,
) -> String {
    let operand = || printer.operand(rule, exprs.start);
    let statement = || mismatch(table, rule, exprs.clone(), &[]).expression;
    match rule.exprs.get(exprs.start) {
        Some(Expr::Lookup { set, .. }) => {
            let expires = |set: &&Set| set.elements.iter().any(|it| it.expires_ms.is_some());
            match table.sets.iter().find(|it| it.name == *set).filter(expires) {
                Some(set) => format!("@{}, whose elements expire", one_line(&set.name)),
                None => operand().unwrap_or_else(statement),
            }
        }
        Some(Expr::SetMark { .. }) => "meta mark set".to_owned(),
        Some(Expr::SetCtMark { .. }) => "ct mark set".to_owned(),
        Some(expr @ (Expr::Xt(_) | Expr::Connmark(_) | Expr::Mangle(_))) => {
            let text = netlink_text::expr(expr);
            one_line(text.trim_start_matches("[ ").trim_end_matches(" ]"))
        }
        Some(_) => operand().unwrap_or_else(statement),
        None => statement(),
    }
}
