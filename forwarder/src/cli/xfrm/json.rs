//! SAs and policies in JSON. iproute2 has no JSON for them: the names are the words of its text.

use serde_json::{Map, Value, json};

use super::names;
use super::text::{algorithm_kind, hex_octets};
use crate::control::xfrm::ae::KernelReplay;
use crate::control::xfrm::info::{EncapInfo, SelectorInfo, TemplateInfo};
use crate::control::xfrm::listing::{AlgorithmEntry, Extras, PolicyEntry, StateEntry};
use crate::ipsec::{Lifetime, Usage};

/// An SA.
pub fn state(entry: &StateEntry) -> Value {
    let StateEntry { info, extras, obstacle } = entry;
    let extra_flags = names::flags(extras.extra_flags.unwrap_or(0), &names::EXTRA_FLAGS);
    let state = json!({
        "src": names::address(info.src, info.family),
        "dst": names::address(info.dst, info.family),
        "proto": names::xfrm_protocol(info.proto),
        "spi": info.spi,
        "reqid": info.reqid,
        "mode": names::mode(info.mode),
        "replay_window": info.replay_window,
        "seq": info.seq,
        "flags": names::flags(info.flags.into(), &names::STATE_FLAGS),
        "extra_flags": extra_flags,
        "sel": (!info.selector.is_zero()).then(|| selector(&info.selector, info.family)),
        "lifetime": lifetime(&info.lifetime),
        "usage": usage(&info.usage),
        "stats": {
            "replay_window": info.stats.replay_window,
            "replay": info.stats.replay,
            "failed": info.stats.integrity_failed,
        },
        "left_to_kernel": obstacle,
    });
    with_attributes(state, extras, info.family)
}

/// A policy.
pub fn policy(entry: &PolicyEntry) -> Value {
    let PolicyEntry { info, extras } = entry;
    let direction = match info.direction % 3 {
        0 => "in",
        1 => "out",
        _ => "fwd",
    };
    let action = match info.action {
        0 => "allow".into(),
        1 => "block".into(),
        other => Value::from(other),
    };
    let policy = json!({
        "sel": selector(&info.selector, 0),
        "dir": direction,
        "socket": info.direction >= 3,
        "action": action,
        "index": info.index,
        "priority": info.priority,
        "ptype": extras.policy_type.map(names::policy_type),
        "share": names::share(info.share),
        "flags": names::flags(info.flags.into(), &names::POLICY_FLAGS),
        "lifetime": lifetime(&info.lifetime),
        "usage": usage(&info.usage),
        "templates": extras.templates.iter().map(template).collect::<Vec<_>>(),
    });
    with_attributes(policy, extras, info.selector.family)
}

/// Adds the attributes that there are, and removes what there is not.
fn with_attributes(entry: Value, extras: &Extras, family: u16) -> Value {
    let algorithms = extras.algorithms.iter().map(algorithm).collect::<Vec<_>>();
    let attributes = json!({
        "mark": extras.mark.map(|mark| json!({ "value": mark.value, "mask": mark.mask })),
        "output_mark": extras.output_mark.map(|(value, mask)| json!({ "value": value, "mask": mask })),
        "algorithms": (!algorithms.is_empty()).then_some(algorithms),
        "encap": extras.encap.map(|encap| encapsulation(&encap, family)),
        "coa": extras.coaddr.map(|coaddr| names::address(coaddr, family)),
        "lastused": extras.lastused_s,
        "anti_replay": extras.replay.as_ref().map(replay),
        "offload": extras.offload.map(|(ifindex, flags)| {
            json!({ "dev": names::interface(ifindex), "flags": flags })
        }),
        "if_id": extras.if_id,
        "tfcpad": extras.tfcpad,
        "dir": extras.direction.map(names::direction),
        "security_context": extras.security_context,
    });
    let mut all = Map::new();
    for fields in [entry, attributes] {
        if let Value::Object(fields) = fields {
            all.extend(fields.into_iter().filter(|(_, value)| !value.is_null()));
        }
    }
    Value::Object(all)
}

/// `family`: of the addresses, if the selector has none of its own.
fn selector(selector: &SelectorInfo, family: u16) -> Value {
    let family = if selector.family == 0 { family } else { selector.family };
    let prefix = |octets, len: u8| format!("{}/{len}", names::address(octets, family));
    let port = |(port, mask): (u16, u16)| json!({ "value": port, "mask": mask });
    let mut fields = json!({
        "src": prefix(selector.src, selector.src_len),
        "dst": prefix(selector.dst, selector.dst_len),
        "uid": selector.user,
    });
    if selector.proto != 0 {
        fields["proto"] = names::protocol(selector.proto).into();
    }
    if selector.sport.1 != 0 {
        fields["sport"] = port(selector.sport);
    }
    if selector.dport.1 != 0 {
        fields["dport"] = port(selector.dport);
    }
    if selector.ifindex != 0 {
        fields["dev"] = names::interface(selector.ifindex).into();
    }
    fields
}

fn lifetime(limits: &Lifetime) -> Value {
    // Null: no limit.
    let soft_and_hard = |[soft, hard]: [u64; 2], none: u64| {
        let limit = |limit| (limit != none).then_some(limit);
        json!({ "soft": limit(soft), "hard": limit(hard) })
    };
    json!({
        "bytes": soft_and_hard(limits.bytes, u64::MAX),
        "packets": soft_and_hard(limits.packets, u64::MAX),
        "add_s": soft_and_hard(limits.add_s, 0),
        "use_s": soft_and_hard(limits.use_s, 0),
    })
}

fn usage(usage: &Usage) -> Value {
    json!({
        "bytes": usage.bytes,
        "packets": usage.packets,
        "add_time_s": usage.add_time_s,
        "use_time_s": usage.use_time_s,
    })
}

fn algorithm(algorithm: &AlgorithmEntry) -> Value {
    let mut fields = json!({
        "type": algorithm_kind(algorithm.kind),
        "name": algorithm.name,
        "key_bits": algorithm.key_bits,
    });
    if let Some(key) = &algorithm.key {
        fields["key"] = format!("0x{}", hex_octets(key)).into();
    }
    if let Some(bits) = algorithm.icv_bits {
        fields["icv_bits"] = bits.into();
    }
    fields
}

fn encapsulation(encap: &EncapInfo, family: u16) -> Value {
    json!({
        "type": names::encap(encap.kind),
        "sport": encap.sport,
        "dport": encap.dport,
        "addr": names::address(encap.original, family),
    })
}

fn template(template: &TemplateInfo) -> Value {
    json!({
        "src": names::address(template.src, template.family),
        "dst": names::address(template.dst, template.family),
        "proto": names::xfrm_protocol(template.proto),
        "spi": template.spi,
        "reqid": template.reqid,
        "mode": names::mode(template.mode),
        "optional": template.optional != 0,
        "share": names::share(template.share),
        "enc_mask": template.ealgos,
        "auth_mask": template.aalgos,
        "comp_mask": template.calgos,
    })
}

fn replay(replay: &KernelReplay) -> Value {
    json!({
        "seq": replay.seq,
        "oseq": replay.oseq,
        "bitmap": replay.bitmap,
        "window": replay.window,
    })
}
