//! What the kernel makes of RTM_NEWROUTE and RTM_DELROUTE among the routes of one prefix.

use std::sync::Arc;

use super::{Applied, Expiry, NLM_F_APPEND, NLM_F_REPLACE, RouteBody, RouteNexthop};

/// As `fib_table_insert`: ordered by decreasing TOS, then increasing metric. Among equals,
/// NLM_F_APPEND adds at the end, NLM_F_REPLACE replaces the first, and otherwise the route is added
/// at the front.
pub(super) fn insert4(list: &mut Vec<Arc<RouteBody>>, body: RouteBody, flags: u16) -> Applied {
    if let Some(same) = list.iter_mut().find(|old| old.same_route(&body)) {
        if same.kind == body.kind {
            return Applied::Same;
        }
        // Its nexthop object is a blackhole now, or no longer one.
        *same = Arc::new(RouteBody { kind: body.kind, ..(**same).clone() });
        return Applied::Changed;
    }
    let key = |body: &RouteBody| (u8::MAX - body.tos, body.priority);
    let first = list.partition_point(|old| key(old) < key(&body));
    let behind = list.partition_point(|old| key(old) <= key(&body));
    if flags & NLM_F_REPLACE != 0 && first < behind {
        list[first] = Arc::new(body);
    } else if flags & NLM_F_APPEND != 0 {
        list.insert(behind, Arc::new(body));
    } else {
        list.insert(first, Arc::new(body));
    }
    Applied::Changed
}

/// As `fib6_add_rt2node`: ordered by increasing metric; routes with a gateway and the same metric
/// form one multipath route, and a message contains all of its next hops.
pub(super) fn insert6(list: &mut Vec<Arc<RouteBody>>, body: RouteBody, flags: u16) -> Applied {
    let first = list.partition_point(|old| old.priority < body.priority);
    let behind = list.partition_point(|old| old.priority <= body.priority);
    let ecmp = body.qualifies_for_ecmp();
    let same = |old: &RouteBody| old.src == body.src && old.qualifies_for_ecmp() == ecmp;
    let twin = (first..behind).find(|at| same(&list[*at]));
    if flags & NLM_F_REPLACE != 0 {
        let any = (first..behind).find(|at| list[*at].src == body.src);
        let Some(at) = twin.or(any) else {
            list.insert(behind, Arc::new(body));
            return Applied::Changed;
        };
        if *list[at] == body {
            return Applied::Same;
        }
        list[at] = Arc::new(body);
        return Applied::Changed;
    }
    if list.iter().any(|old| **old == body) {
        return Applied::Same;
    }
    let Some(at) = twin.filter(|_| ecmp) else {
        list.insert(behind, Arc::new(body));
        return Applied::Changed;
    };
    merge_nexthops(&mut list[at], body)
}

/// The message contains the whole route after the change, beginning with the new next hops; the
/// kernel keeps the order in which they were added.
fn merge_nexthops(old: &mut Arc<RouteBody>, new: RouteBody) -> Applied {
    if new.nexthops.iter().all(|nh| has_hop(old, nh)) {
        // The message is older than the mirrored state, or has one hop fewer: dump.
        return Applied::Doubt;
    }
    if !old.nexthops.iter().all(|nh| has_hop(&new, nh)) {
        *old = Arc::new(new);
        return Applied::Doubt;
    }
    let mut nexthops = old.nexthops.to_vec();
    nexthops.extend(new.nexthops.iter().filter(|nh| !has_hop(old, nh)).cloned());
    // The kernel reports the attributes of the first hop for the whole route.
    *old = Arc::new(RouteBody { nexthops: nexthops.into(), ..(**old).clone() });
    Applied::Changed
}

/// RTM_DELROUTE of an IPv6 route contains the next hops to remove.
pub(super) fn remove_nexthops(list: &mut Vec<Arc<RouteBody>>, gone: &RouteBody) -> Applied {
    let matches = |old: &RouteBody| {
        (old.priority, old.src, old.kind, old.nhid)
            == (gone.priority, gone.src, gone.kind, gone.nhid)
            && !gone.nexthops.is_empty()
            && gone.nexthops.iter().all(|nh| has_hop(old, nh))
    };
    let Some(at) = list.iter().position(|old| matches(old)) else { return Applied::Same };
    let left: Box<[RouteNexthop]> =
        list[at].nexthops.iter().filter(|nh| !has_hop(gone, nh)).cloned().collect();
    if left.is_empty() {
        list.remove(at);
        return Applied::Changed;
    }
    // The kernel reports the attributes of the first hop (metrics, protocol) for the whole route.
    let first_stays = list[at].nexthops.first() == left.first();
    let expiry = match list[at].expiry {
        Expiry::Expired | Expiry::Unknown if !first_stays => Expiry::Unknown,
        expiry => expiry,
    };
    list[at] = Arc::new(RouteBody { nexthops: left, expiry, ..(*list[at]).clone() });
    if first_stays { Applied::Changed } else { Applied::Doubt }
}

/// The message for a single removed hop contains weight 1.
fn has_hop(body: &RouteBody, nexthop: &RouteNexthop) -> bool {
    body.nexthops.iter().any(|nh| (nh.oif, nh.gateway) == (nexthop.oif, nexthop.gateway))
}
