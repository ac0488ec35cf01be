//! Which rule makes a flow one that is decided packet by packet: the ruleset is followed with what is known of the flow, on
//! the thread of a client.

use crate::control::api::flow_rows::{ConnectionRow, Forwarding, Reason};
use crate::control::nftables::print::{Printer, one_line};
use crate::control::nftables::varying::expression;
use crate::netfilter::conntrack::{Direction, FlowView, Undecided};
use crate::netfilter::nft::carried_rules::{Cause, FlowFacts};
use crate::netfilter::nft::{Nft, TracedRule};
use crate::netfilter::{COUNTERS_MAX, Hooks};

/// Names the rules of a connection whose directions have [`Reason::RulesPerPacket`].
pub(super) fn name_rules(hooks: &Hooks, row: &mut ConnectionRow, view: &FlowView) {
    let Some(nft) = hooks.nft() else { return };
    for (at, direction) in row.directions.iter_mut().enumerate() {
        let Forwarding { iif, oif, not_offloaded, .. } = &mut direction.forwarding;
        if let Some(not_offloaded) = not_offloaded
            && not_offloaded.reason == Reason::RulesPerPacket
        {
            not_offloaded.rule = rule(nft, view, at, [iif, oif]);
        }
    }
}

/// Why packets of a direction are decided about one by one. `None`: it is not known.
fn rule(nft: &Nft, view: &FlowView, at: usize, [iif, oif]: [&Option<String>; 2]) -> Option<String> {
    let received = *view.desc.keys.get(at)?;
    let facts = FlowFacts {
        received,
        translated: view.desc.keys.get(1 - at)?.inverted(),
        direction: if at == 0 { Direction::Original } else { Direction::Reply },
        status: view.desc.status,
        mark: view.desc.mark,
        iif: iif.clone(),
        oif: oif.clone(),
    };
    if view.undecided.get(at) == Some(&Some(Undecided::OtherRoutes)) {
        return nft.other_route(&facts).map(|rule| place(&rule));
    }
    match nft.per_packet(&facts)? {
        Cause::Rule(rule) => Some(place(&rule)),
        Cause::Counters(count) => {
            (count > COUNTERS_MAX).then(|| format!("they pass more than {COUNTERS_MAX} counters"))
        }
    }
}

/// A rule, with the expression that was found.
fn place(TracedRule { table, chain, rule, exprs }: &TracedRule<'_>) -> String {
    let exprs = exprs.as_ref().map(|exprs| expression(&Printer::new(table), table, rule, exprs));
    let exprs = exprs.map_or_else(String::new, |text| format!(": {text}"));
    let (family, name, chain) = (table.family, one_line(&table.name), one_line(&chain.name));
    format!("{family} {name} {chain} handle {}{exprs}", rule.handle)
}
