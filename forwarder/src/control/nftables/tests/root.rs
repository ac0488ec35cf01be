//! The rulesets that a kernel has, in network namespaces of the tests.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::printer;
use crate::control::netlink::query::{NlSock, is_interrupted};
use crate::control::netlink::test_netns::{self, nft, run};
use crate::control::nftables::print::{Printer, base_chain};
use crate::control::nftables::xt::XT_REG;
use crate::control::nftables::{generation, read};
use crate::netfilter::nft::Ruleset;
use crate::netfilter::nft::ruleset::{
    BitwiseOp, CmpOp, CtKey, Data, Expr, Family, MetaKey, PayloadBase, Reg, RuleVerdict,
    SET_ANONYMOUS, SET_CONSTANT, Set, Table,
};
use crate::netfilter::nft::xt::{HopLimitMode, Mangle};

/// Runs `test` in a new network namespace with two interfaces.
fn in_netns(test: impl FnOnce(&mut NlSock) + Send + 'static) {
    test_netns::in_netns(move || {
        run("ip link add va type veth peer name vb");
        test(&mut NlSock::open(NETLINK_NETFILTER).expect("opens"));
    });
}

/// Reads the ruleset and compares it with what nft prints; returns the ruleset and the number of
/// rules.
fn same_as_nft(socket: &mut NlSock) -> (Ruleset, usize) {
    let ruleset = read(socket).expect("reads");
    let expected = printer::of_nft(&run("nft --debug=netlink list ruleset"), &ruleset);
    let printed = printer::print(&ruleset);
    for (name, lines) in &expected {
        assert_eq!(printed.get(name), Some(lines), "{name}");
    }
    let more: Vec<_> = printed.keys().filter(|name| !expected.contains_key(*name)).collect();
    assert!(more.is_empty(), "not printed by nft: {more:?}");
    let rules = expected.keys().filter(|name| !name.contains('@')).count();
    (ruleset, rules)
}

fn table<'a>(ruleset: &'a Ruleset, name: &str) -> &'a Table {
    ruleset.tables.iter().find(|table| table.name == name).expect("the table")
}

fn set<'a>(table: &'a Table, name: &str) -> &'a Set {
    table.sets.iter().find(|set| set.name == name).expect("the set")
}

/// The expressions of the only rule of a chain that have texts only.
fn others(ruleset: &Ruleset) -> Vec<&str> {
    let rules = ruleset.tables.iter().flat_map(|table| &table.chains).flat_map(|of| &of.rules);
    let texts = rules.flat_map(|rule| &rule.exprs).filter_map(|expr| match expr {
        Expr::Other(other) => Some(other.name.as_str()),
        _ => None,
    });
    texts.collect()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_all_expressions_and_elements_are_as_nft_prints_them() {
    in_netns(|socket| {
        nft(include_str!("broad.nft"));
        let (ruleset, rules) = same_as_nft(socket);
        assert!(rules > 150, "{rules} rules");
        let others = others(&ruleset);
        for text in [
            "limit",
            "quota",
            "log",
            "reject",
            "nat",
            "masq",
            "redir",
            "dynset learned",
            "rt",
            "socket",
            "osf",
            "numgen",
            "hash",
            "dup",
            "fwd",
            "synproxy",
            "tproxy",
            "connlimit",
            "exthdr set",
            "exthdr sctp",
            "meta priority set",
            "meta nftrace set",
            "objref map",
        ] {
            assert!(others.contains(&text), "{text} is not among {others:?}");
        }
    });
}

/// Rules that have no text in nft's words, or another one: times, labels, events, maps of objects and of prefixes, chunks;
/// interfaces are numbers.
const IN_BRACKETS: [&str; 13] = [
    "counter name ip saddr map",
    "ct label",
    "ct expiration",
    "ct event",
    "ct id",
    "meta random",
    "meta time",
    "meta hour",
    "meta day",
    "sctp chunk",
    "dnat ip prefix",
    "snat ip prefix",
    "device \"",
];

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_statements_are_written_as_by_nft() {
    in_netns(|socket| {
        nft(include_str!("statements.nft"));
        let listed = run("nft --stateless list ruleset");
        let is_rule = |line: &&str| !line.starts_with("type ") && !line.is_empty() && *line != "}";
        let in_chains = listed.split("\tchain ").skip(1).map(|chain| {
            let end = chain.find("\n\t}").expect("the end of a chain");
            chain[..end].lines().skip(1).map(str::trim).filter(is_rule).collect::<Vec<&str>>()
        });
        let ruleset = read(socket).expect("reads");
        let printed = ruleset.tables.iter().flat_map(|table| {
            let printer = Printer::new(table);
            let rules = table.chains.iter().map(|of| {
                of.rules.iter().map(|rule| printer.rule(rule, &|_| None)).collect::<Vec<String>>()
            });
            rules.collect::<Vec<_>>()
        });
        let (expected, printed): (Vec<_>, Vec<_>) = (in_chains.collect(), printed.collect());
        assert_eq!(expected.len(), printed.len());
        let mut equal = 0;
        for (expected, printed) in expected.iter().zip(&printed) {
            assert_eq!(expected.len(), printed.len(), "{expected:#?} {printed:#?}");
            for (expected, printed) in expected.iter().zip(printed) {
                let is_other = IN_BRACKETS.iter().any(|part| expected.contains(part))
                    || expected.ends_with("to \"va\"");
                assert!(is_other != (expected == printed), "{expected}\n{printed}");
                equal += usize::from(!is_other);
            }
        }
        assert!(equal > 120, "{equal} rules");
    });
}

/// A table in nft's language, without what nft does not accept in that form.
fn script(table: &Table) -> String {
    let printer = Printer::new(table);
    let mut lines = vec![format!("table {} {} {{", table.family, table.name)];
    lines.extend(printer.sets().map(|set| set.join("\n")).filter(|set| !set.contains('#')));
    for chain in &table.chains {
        lines.push(format!("chain {} {{", chain.name));
        let base = chain.base.as_ref().filter(|base| base.kind == "filter");
        lines.extend(base.map(|base| base_chain(table.family, base)));
        let rules = chain.rules.iter().map(|rule| printer.rule(rule, &|_| Some((1, 2))));
        let is_left_out = |rule: &String| {
            ["[ ", "@learned", "@counted", "name \""].iter().any(|part| rule.contains(part))
        };
        lines.extend(rules.filter(|rule| !is_left_out(rule)));
        lines.push("}".into());
    }
    lines.push("}\n".into());
    lines.join("\n")
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_nft_reads_the_text_of_rules_and_sets_as_they_were() {
    in_netns(|socket| {
        nft(include_str!("broad.nft"));
        let printed = script(table(&read(socket).expect("reads"), "wide"));
        assert!(printed.lines().count() > 130, "{printed}");
        nft(&format!("flush ruleset\n{printed}"));
        assert_eq!(script(table(&read(socket).expect("reads"), "wide")), printed);
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_tables_chains_and_sets_have_their_properties() {
    in_netns(|socket| {
        assert_eq!(read(socket).expect("reads").tables, [], "empty");
        nft(include_str!("broad.nft"));
        let ruleset = read(socket).expect("reads");
        assert_eq!(ruleset.generation, generation(socket).expect("is known"));
        let names: Vec<String> =
            ruleset.tables.iter().map(|of| format!("{} {}", of.family, of.name)).collect();
        let expected =
            ["inet wide", "ip old", "ip6 six", "netdev early", "bridge frames", "arp requests"];
        assert_eq!(names, expected);
        assert!(table(&ruleset, "six").dormant && !table(&ruleset, "old").dormant);
        let base = |of: &str, chain: &str| {
            let chains = &table(&ruleset, of).chains;
            chains.iter().find(|of| of.name == chain).expect("the chain").base.clone()
        };
        assert_eq!(base("wide", "web"), None);
        let forward = base("wide", "forward").expect("a base chain");
        assert_eq!((forward.kind.as_str(), forward.hook, forward.priority), ("filter", 2, -5));
        assert!(forward.policy_drops && forward.devices.is_empty());
        let output = base("old", "output").expect("a base chain");
        assert_eq!((output.kind.as_str(), output.hook), ("route", 3));
        assert!(!output.policy_drops);
        let mut ingress = base("early", "ingress").expect("a base chain");
        ingress.devices.sort();
        assert_eq!((ingress.hook, ingress.priority), (0, -500));
        assert_eq!(ingress.devices, ["va", "vb"]);
        assert_eq!(base("early", "egress").expect("a base chain").devices, ["va"]);

        let wide = table(&ruleset, "wide");
        let web = &wide.chains.iter().find(|chain| chain.name == "web").expect("it").rules;
        assert_eq!(web[1].comment.as_deref(), Some("all of it"));
        let hits = wide.objects.iter().find(|object| object.name == "hits").expect("it");
        assert_eq!((hits.kind, hits.counter), (1, (0, 0)));
        assert!(wide.objects.iter().any(|object| object.kind == 2), "the quota");
        let lengths = |name: &str| {
            let Set { key_len, data_len, fields, .. } = set(wide, name);
            (*key_len, *data_len, fields.clone())
        };
        assert_eq!(lengths("v4"), (4, 0, vec![]));
        assert_eq!(lengths("pairs"), (8, 0, vec![]));
        assert_eq!(lengths("boxes"), (8, 0, vec![4, 2]));
        assert_eq!(lengths("boxes6"), (40, 0, vec![16, 16, 1, 2]));
        assert_eq!(lengths("marks"), (2, 4, vec![]));
        assert_eq!(lengths("verdicts"), (2, 0, vec![]));
        for (name, reason) in
            [("learned", "dynamic"), ("counted", "counters"), ("objects", "objects")]
        {
            let unsupported = set(wide, name).unsupported.clone().unwrap_or_default();
            assert!(unsupported.contains(reason), "{name}: {unsupported}");
        }
        let unsupported = wide.sets.iter().filter(|set| set.unsupported.is_some()).count();
        assert_eq!(unsupported, 3);
        let anonymous = set(wide, "__set0");
        assert_eq!(anonymous.flags & (SET_ANONYMOUS | SET_CONSTANT), SET_ANONYMOUS | SET_CONSTANT);
        let expiry: Vec<_> =
            set(wide, "temporary").elements.iter().map(|of| of.expires_ms).collect();
        assert!(expiry.contains(&None), "{expiry:?}");
        assert!(expiry.iter().flatten().all(|ms| (1..=3_600_000).contains(ms)), "{expiry:?}");
        let last = set(wide, "verdicts").elements.iter().find(|of| of.is_catchall).expect("it");
        assert_eq!(last.data, Some(Data::Verdict(RuleVerdict::Continue)));
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_rules_of_iptables_are_read() {
    in_netns(|socket| {
        for line in [
            "iptables-nft -P FORWARD DROP",
            "iptables-nft -N web",
            "iptables-nft -A FORWARD -s 192.0.2.0/24 -i va -p tcp --dport 80 -j ACCEPT",
            "iptables-nft -A FORWARD -p tcp --dport 80:90 ! --sport 5 -j web",
            "iptables-nft -A FORWARD -p udp -m multiport --dports 53,123 -j ACCEPT",
            "iptables-nft -A FORWARD -m state --state ESTABLISHED -j ACCEPT",
            "iptables-nft -A FORWARD -m conntrack --ctstate NEW -g web",
            "iptables-nft -A FORWARD -m conntrack --ctstate DNAT -j ACCEPT",
            "iptables-nft -A FORWARD -m conntrack ! --ctproto tcp -j ACCEPT",
            "iptables-nft -A FORWARD -m comment --comment 'for all' -j ACCEPT",
            "iptables-nft -A FORWARD -m limit --limit 5/s -j LOG",
            "iptables-nft -A FORWARD -i v+ ! -o vb -m mark --mark 1/0xf -j DROP",
            "iptables-nft -A FORWARD -p icmp --icmp-type 8 -j ACCEPT",
            "iptables-nft -A FORWARD -f -j DROP",
            "iptables-nft -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
            "iptables-nft -A web -m set ! --match-set none src -j RETURN || true",
            "iptables-nft -A web -m hashlimit --hashlimit-upto 5/s --hashlimit-name h -j RETURN",
            "iptables-nft -A web -j REJECT",
            "iptables-nft -t mangle -A PREROUTING -j MARK --set-mark 7",
            "iptables-nft -t mangle -A PREROUTING -j DSCP --set-dscp 46",
            "iptables-nft -t mangle -A PREROUTING -j TOS --set-tos 0x10/0x3f",
            "iptables-nft -t mangle -A PREROUTING -j TTL --ttl-inc 3",
            "ip6tables-nft -t mangle -A PREROUTING -j HL --hl-dec 3",
            "iptables-nft -t nat -A POSTROUTING -o va -j MASQUERADE",
            "iptables-nft -t raw -A PREROUTING -j CT --notrack",
            "ip6tables-nft -A FORWARD -d 2001:db8::/33 -p ipv6-icmp --icmpv6-type 2 -j ACCEPT",
            "ip6tables-nft -A FORWARD -m ah --ahspi 5 -j DROP",
            "ip6tables-nft -A FORWARD -p udp -m multiport --ports 5:6 -j REJECT",
        ] {
            run(line);
        }
        let (ruleset, _) = same_as_nft(socket);
        let filter = &ruleset.tables[0];
        assert_eq!((filter.family, filter.name.as_str()), (Family::Ip, "filter"));
        let forward = filter.chains.iter().find(|of| of.name == "FORWARD").expect("it");
        assert!(forward.base.as_ref().expect("a base chain").policy_drops);
        let (dreg, sreg) = (Reg(0), Reg(0));
        let payload = |base, offset, len| Expr::Payload { dreg, base, offset, len };
        let eq = |data: &[u8]| Expr::Cmp { sreg, op: CmpOp::Eq, data: data.to_vec() };
        let first = &forward.rules[0].exprs;
        // iptables 1.8.9 reads addresses by whole octets of the prefix.
        let expected = [
            payload(PayloadBase::Network, 12, 3),
            eq(&[192, 0, 2]),
            Expr::Meta { dreg, key: MetaKey::IifName },
            eq(b"va\0"),
            Expr::Meta { dreg, key: MetaKey::L4Proto },
            eq(&[6]),
            payload(PayloadBase::Transport, 2, 2),
            eq(&80u16.to_be_bytes()),
            Expr::Counter { packets: 0, octets: 0 },
            Expr::Verdict(RuleVerdict::Accept),
        ];
        assert!(expected.iter().all(|expr| first.contains(expr)), "{first:?}");
        assert_eq!(first.len(), expected.len(), "{first:?}");
        // ESTABLISHED, and NEW.
        let states: Vec<_> = forward.rules.iter().flat_map(|rule| &rule.exprs).collect();
        for state in [2u32, 8] {
            let mask = state.to_ne_bytes().to_vec();
            let op = BitwiseOp::MaskXor { mask, xor: vec![0; 4] };
            let same = [
                Expr::Ct { dreg: XT_REG, key: CtKey::State },
                Expr::Bitwise { sreg: XT_REG, dreg: XT_REG, len: 4, op },
                Expr::Cmp { sreg: XT_REG, op: CmpOp::Neq, data: vec![0; 4] },
            ];
            assert!(states.windows(3).any(|it| it.iter().copied().eq(&same)), "{states:?}");
        }
        let commented = forward.rules.iter().find(|rule| rule.comment.is_some()).expect("it");
        assert_eq!(commented.comment.as_deref(), Some("for all"));
        let targets = ruleset.tables.iter().flat_map(|table| &table.chains);
        let targets = targets.flat_map(|chain| &chain.rules).flat_map(|rule| &rule.exprs);
        let targets: Vec<Mangle> = targets
            .filter_map(|expr| if let Expr::Mangle(of) = expr { Some(*of) } else { None })
            .collect();
        let expected = [
            Mangle::Dsfield { keep: 3, value: 46 << 2 },
            Mangle::Dsfield { keep: !0x3f, value: 0x10 },
            Mangle::Ttl(HopLimitMode::Inc, 3),
            Mangle::HopLimit(HopLimitMode::Dec, 3),
        ];
        assert_eq!(targets, expected);
        let others = others(&ruleset);
        for text in [
            "limit",
            "xt target LOG",
            "xt target TCPMSS",
            "xt match hashlimit",
            "xt target REJECT",
            "xt target MASQUERADE",
            "xt target CT --notrack",
            "xt match ah",
        ] {
            assert!(others.contains(&text), "{text} is not among {others:?}");
        }
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_never_half_a_ruleset_is_read() {
    in_netns(|socket| {
        // Alternately `count` rules in each of two tables and as many elements, or none.
        let script = |count: usize| {
            let rules = "counter accept\n".repeat(count);
            let elements: Vec<String> = (0..count).map(|n| n.to_string()).collect();
            let elements = match count {
                0 => String::new(),
                _ => format!("elements = {{ {} }};", elements.join(",")),
            };
            let table = |name: &str| {
                format!(
                    "table ip {name}\ndelete table ip {name}\ntable ip {name} {{\n\
                     set s {{ type mark; {elements} }}\nchain c {{\n{rules}}}\n}}\n"
                )
            };
            table("first") + &table("second")
        };
        let scripts = [script(0), script(300)];
        nft(&scripts[0]);
        let done = AtomicBool::new(false);
        let reads = std::thread::scope(|scope| {
            // A thread is in the namespace of the one that starts it.
            scope.spawn(|| {
                for n in 0..60 {
                    nft(&scripts[n % 2]);
                }
                done.store(true, Relaxed);
            });
            let mut reads = 0;
            while !done.load(Relaxed) {
                let ruleset = match read(socket) {
                    Err(error) => {
                        assert!(is_interrupted(&error), "{error}");
                        continue;
                    }
                    Ok(ruleset) => ruleset,
                };
                let counts: Vec<_> = ruleset
                    .tables
                    .iter()
                    .map(|table| (table.chains[0].rules.len(), table.sets[0].elements.len()))
                    .collect();
                assert!(counts == [(0, 0); 2] || counts == [(300, 300); 2], "{counts:?}");
                reads += 1;
            }
            reads
        });
        assert!(reads > 0);
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_elements_that_expire_hide_no_others_from_a_reader() {
    in_netns(|socket| {
        const PERMANENT: usize = 2_000;
        let permanent: Vec<String> = (0..PERMANENT).map(|n| n.to_string()).collect();
        nft(&format!(
            "table ip t {{ set s {{ type mark; flags timeout; gc-interval 10ms;\n\
             elements = {{ {} }}; }}; }}",
            permanent.join(",")
        ));
        for round in 0..5 {
            let first = PERMANENT + round * 2_000;
            let expiring =
                (first..first + 2_000).map(|n| format!("{n} timeout {}ms", 100 + n % 200));
            let expiring = expiring.collect::<Vec<_>>().join(",");
            nft(&format!("add element ip t s {{ {expiring} }}"));
            let until = Instant::now() + Duration::from_millis(400);
            let mut reads = 0;
            while Instant::now() < until {
                let ruleset = match read(socket) {
                    Err(error) if is_interrupted(&error) => continue,
                    ruleset => ruleset.expect("reads"),
                };
                let elements = &set(&ruleset.tables[0], "s").elements;
                let permanent = elements.iter().filter(|element| element.expires_ms.is_none());
                assert_eq!(permanent.count(), PERMANENT);
                reads += 1;
            }
            assert!(reads > 0);
        }
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_large_sets_are_read_completely() {
    let addresses = |count: u32, step: u32, more: &str| {
        let address = |n| std::net::Ipv4Addr::from(0x0a00_0000 + n * step);
        (0..count).map(|n| format!("{}{more}", address(n))).collect::<Vec<String>>().join(",")
    };
    in_netns(move |socket| {
        for (name, kind, count, step, more) in [
            ("hash", "type ipv4_addr", 100_000, 1, ""),
            ("intervals", "type ipv4_addr; flags interval", 100_000, 2, ""),
            ("boxes", "type ipv4_addr . inet_service; flags interval", 20_000, 1, " . 1-9"),
        ] {
            let elements = addresses(count, step, more);
            nft(&format!(
                "flush ruleset\ntable ip t {{\nset {name} {{ {kind}; elements = {{ {elements} }}; }}\n}}\n"
            ));
            let start = Instant::now();
            let ruleset = read(socket).expect("reads");
            let elapsed = start.elapsed();
            let _shown = writeln!(std::io::stderr(), "{name}: {count} elements in {elapsed:?}");
            let set = set(&ruleset.tables[0], name);
            let starts = set.elements.iter().filter(|element| !element.is_interval_end).count();
            assert_eq!((starts, &set.unsupported), (count as usize, &None));
        }
    });
}
