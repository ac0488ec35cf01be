//! The ruleset as text in the syntax of `nft list ruleset` (src/netlink_delinearize.c of nftables turns
//! expressions into statements in a similar way). Expressions without a known form are printed in brackets as
//! `nft --debug=netlink` prints them.
//!
//! - [`Printer`]: rules and sets of a table; `chain`: properties of base chains;
//! - `statement`: the statements of a rule; `other`: those that are not evaluated; `operand`: what registers hold;
//!   `elements`: elements of sets;
//! - `fields`, `value`, `names`: header fields, types of values, names of values.
//!
//! Left out: time-outs of elements, declarations of objects other than counters, and names of users and
//! interfaces for `skuid`, `skgid`, `iif` and `oif`, which are printed as numbers.

mod chain;
mod elements;
pub(super) mod fields;
pub(super) mod names;
mod operand;
mod other;
mod statement;
#[cfg(test)]
mod tests;
mod value;

use std::cell::RefCell;
use std::collections::HashMap;

pub use self::chain::{base_chain, hook, policy};
use self::operand::Left;
use self::statement::RulePrinter;
use self::value::Kind;
use crate::control::process::terminal::printable;
use crate::netfilter::nft::ruleset::{
    Rule, RuleVerdict, SET_ANONYMOUS, SET_CONSTANT, SET_EVAL, SET_INTERVAL, SET_MAP, SET_OBJECT,
    SET_TIMEOUT, Set, Table,
};

/// Octets of a line of elements, after which a new one begins.
const LINE: usize = 100;

/// Prints what is in a table.
#[derive(Debug)]
pub struct Printer<'a> {
    table: &'a Table,
    sets: HashMap<&'a str, &'a Set>,
    /// Types of named sets, by their use in rules.
    types: RefCell<HashMap<&'a str, SetType>>,
}

/// Packets and octets of the counter at a position of a rule; `None`: they are not printed.
pub type Counts<'a> = dyn Fn(usize) -> Option<(u64, u64)> + 'a;

/// The types of a set.
#[derive(Debug, Clone, Default)]
struct SetType {
    fields: Vec<Left>,
    data: Option<Kind>,
}

impl<'a> Printer<'a> {
    /// For a table.
    pub fn new(table: &'a Table) -> Printer<'a> {
        let sets = table.sets.iter().map(|set| (set.name.as_str(), set)).collect();
        Printer { table, sets, types: RefCell::default() }
    }

    /// A rule on one line, without its handle.
    pub fn rule(&self, rule: &'a Rule, counts: &Counts<'_>) -> String {
        let mut words = RulePrinter::new(self, rule, counts).statements();
        if let Some(comment) = &rule.comment {
            words.push(format!("comment \"{}\"", one_line(comment)));
        }
        words.join(" ")
    }

    /// The name of what the expression at a position of a rule loads or compares, for example `ip dscp`.
    pub fn operand(&self, rule: &'a Rule, position: usize) -> Option<String> {
        RulePrinter::new(self, rule, &|_| None).operand(position)
    }

    /// Lines of the declarations of named sets, without indentation, set by set. The types of their elements are taken
    /// from the rules that use them.
    pub fn sets(&self) -> impl Iterator<Item = Vec<String>> {
        let named: Vec<&'a Set> =
            self.table.sets.iter().filter(|set| set.flags & SET_ANONYMOUS == 0).collect();
        if !named.is_empty() {
            let rules = self.table.chains.iter().flat_map(|chain| &chain.rules);
            rules.for_each(|rule| {
                RulePrinter::new(self, rule, &|_| None).statements();
            });
        }
        named.into_iter().map(|set| self.set(set))
    }

    fn set(&self, set: &Set) -> Vec<String> {
        let is_map = set.flags & (SET_MAP | SET_OBJECT) != 0;
        let word = if is_map { "map" } else { "set" };
        let of = self.types.borrow().get(set.name.as_str()).cloned().unwrap_or_default();
        let mut lines = vec![format!("{word} {} {{", one_line(&set.name))];
        lines.push(format!("\t{}", declaration(set, &of)));
        let flags = [
            (SET_CONSTANT, "constant"),
            (SET_INTERVAL, "interval"),
            (SET_TIMEOUT, "timeout"),
            (SET_EVAL, "dynamic"),
        ];
        let flags = flags.iter().filter(|(flag, _)| set.flags & flag != 0);
        let flags: Vec<&str> = flags.map(|(_, name)| *name).collect();
        if !flags.is_empty() {
            lines.push(format!("\tflags {}", flags.join(",")));
        }
        match &set.unsupported {
            Some(why) => lines.push(format!("\t# left to the kernel: {}", one_line(why))),
            None => lines.extend(wrapped(&elements::elements(set, &of.fields, of.data))),
        }
        lines.push("}".into());
        lines
    }
}

/// The type of a set's elements.
fn declaration(set: &Set, of: &SetType) -> String {
    let data = |kind: Option<Kind>| match (set.flags & SET_MAP != 0, set.data_len, kind) {
        (false, ..) => String::new(),
        (true, 0, _) => " : verdict".into(),
        (true, _, Some(kind)) => format!(" : {}", kind.type_name().unwrap_or("integer")),
        (true, len, None) => format!(" : {len} octets"),
    };
    let data = data(of.data);
    if of.fields.is_empty() {
        return format!("# keys of {} octets{data}, which no rule here looks up", set.key_len);
    }
    let types: Option<Vec<&str>> = of.fields.iter().map(|field| field.kind.type_name()).collect();
    match types {
        Some(types) => format!("type {}{data}", types.join(" . ")),
        None => {
            let texts: Vec<&str> = of.fields.iter().map(|field| field.text.as_str()).collect();
            format!("typeof {}{data}", texts.join(" . "))
        }
    }
}

/// Elements in lines of limited length.
fn wrapped(elements: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::from("\telements = { ");
    for (at, element) in elements.iter().enumerate() {
        if line.len() > LINE {
            lines.push(std::mem::replace(&mut line, "\t\t     ".into()).trim_end().to_owned());
        }
        line.push_str(element);
        line.push_str(if at + 1 == elements.len() { " }" } else { ", " });
    }
    if !elements.is_empty() {
        lines.push(line);
    }
    lines
}

/// A verdict in nft's words.
fn verdict(verdict: &RuleVerdict) -> String {
    match verdict {
        RuleVerdict::Accept => "accept".into(),
        RuleVerdict::Drop => "drop".into(),
        RuleVerdict::Continue => "continue".into(),
        RuleVerdict::Break => "break".into(),
        RuleVerdict::Jump(chain) => format!("jump {}", one_line(chain)),
        RuleVerdict::Goto(chain) => format!("goto {}", one_line(chain)),
        RuleVerdict::Return => "return".into(),
        RuleVerdict::Other(code) => format!("[ verdict {code} ]"),
    }
}

/// Text of the kernel, as a part of a line: names and comments may contain any character.
pub fn one_line(text: &str) -> String {
    printable(text).replace('\n', "\\x0a").replace('\t', "\\x09")
}
