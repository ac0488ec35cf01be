//! The nftables ruleset that workers apply, with the counters of kernel and workers: as text in nft's syntax, or
//! as JSON.
//!
//! Counts are those of the kernel when the ruleset was last read plus those of the workers. What the kernel has
//! counted after that is not known here.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::Format;
use super::rows::{List, ListError, RowWriter};
use crate::control::nftables::print::{self, Printer, one_line};
use crate::control::nftables::varying;
use crate::netfilter::Hook;
use crate::netfilter::nft::Nft;
use crate::netfilter::nft::carried_rules::{LeftOf, Meets, carried_rules};
use crate::netfilter::nft::ruleset::{Chain, Data, Expr, OBJECT_COUNTER, Rule, RuleVerdict, Table};
use crate::netfilter::nft::{CounterKind, CounterPlace, KernelRule};

/// Text if there is no ruleset.
const NONE: &str = "no nftables ruleset is applied by the workers";
/// Why rules of a chain are not evaluated in userspace.
const NOT_REACHED: &str = "packets in userspace do not reach the chain";
/// What is said of a chain for packets to the router, of which workers have only those of IPsec.
const OF_IPSEC: &str = "of packets in userspace, only those of IPsec reach the chain";

/// What is said of a rule that is left to the kernel, but whose expression packets of carried connections do not reach.
const NOT_MET: &str = " (reached by no carried packet)";

/// What is said of a chain at ingress while connections are tracked.
const EACH_PACKET: &str = "each packet is evaluated, also of carried connections";
/// What is said of a chain with a priority of NAT.
const BESIDE_NAT: &str = "it has the priority of NAT: connections with NAT are left to the kernel";

/// Answers a request for the ruleset.
#[derive(Debug)]
pub struct Rules {
    nft: Option<Arc<Nft>>,
    format: Format,
}

impl Rules {
    /// `nft`: what workers apply, if they apply a ruleset.
    pub fn new(nft: Option<Arc<Nft>>, format: Format) -> Rules {
        Rules { nft, format }
    }
}

impl List for Rules {
    /// Writes all rows: in text a line each, in JSON a table each, whose rules are made while they are written.
    fn write_some(&mut self, to: &mut RowWriter<'_>) -> Result<bool, ListError> {
        let tables = self.nft.iter().flat_map(|nft| &nft.ruleset().tables);
        if tables.clone().next().is_none() && self.format == Format::Text {
            to.lines(&NONE)?;
        }
        let Some(nft) = &self.nft else { return Ok(false) };
        let state = State::new(nft);
        for table in tables {
            match self.format {
                Format::Text => state.text(table, to)?,
                Format::Json => state.json(table, to)?,
            }
        }
        Ok(false)
    }
}

/// A counter: family and name of the table, chain, handle of the rule, position in the rule.
type Place<'a> = (&'a str, &'a str, u64, usize);

/// What is known of the rules by their places.
struct State<'a> {
    nft: &'a Nft,
    counters: HashMap<Place<'a>, usize>,
    /// Named counters, by table and name.
    objects: HashMap<(&'a str, &'a str), usize>,
    /// Why rules are left to the kernel, by table, chain and handle.
    kernel: HashMap<(&'a str, &'a str, u64), &'a str>,
    /// The base chains that workers run: family, table and chain.
    bases: HashSet<&'a str>,
    /// Those at input, which workers run for IPsec packets.
    inputs: HashSet<&'a str>,
    /// What is said of base chains.
    notes: HashMap<&'a str, &'static str>,
    /// What packets of carried connections meet in rules, by the place of the rule, and whether all packets that may reach
    /// the rule are of tracked families, and which connections it leaves to the kernel; empty if none are tracked.
    carried: HashMap<*const Rule, (Meets, bool, LeftOf)>,
}

/// What the workers do with a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evaluated<'a> {
    Userspace,
    /// With the reason.
    Kernel(&'a str),
}

impl<'a> State<'a> {
    fn new(nft: &'a Nft) -> State<'a> {
        let program = nft.program();
        let (mut counters, mut objects) = (HashMap::new(), HashMap::new());
        for (number, CounterPlace { table, kind, .. }) in program.counters().iter().enumerate() {
            match kind {
                CounterKind::Rule { chain, handle, position } => {
                    counters.insert((table.as_str(), chain.as_str(), *handle, *position), number);
                }
                CounterKind::Object(name) => {
                    objects.insert((table.as_str(), name.as_str()), number);
                }
            }
        }
        let kernel = program.kernel_rules().map(|rule| {
            let KernelRule { table, chain, handle, text, .. } = rule;
            ((table.as_str(), chain.as_str(), *handle), text.as_str())
        });
        let of_hooks = nft.base_chains().filter(|(_, hook, ..)| *hook != Hook::LocalIn);
        let bases = of_hooks.map(|(_, _, _, base)| base).chain(program.ingress_chains());
        let bases = bases.map(|base| program.chain_name(base)).collect();
        let at_input = nft.base_chains().filter(|(_, hook, ..)| *hook == Hook::LocalIn);
        let inputs = at_input.map(|(_, _, _, base)| program.chain_name(base)).collect();
        let carried = carried_rules(program, nft.ruleset()).into_iter();
        let carried = carried
            .map(|of| (std::ptr::from_ref(of.rule), (of.meets, of.is_tracked, of.left_of)))
            .collect();
        let kernel = kernel.collect();
        let name = |base| program.chain_name(base);
        let mut notes = HashMap::new();
        if program.tracks_connections() {
            notes.extend(program.ingress_chains().map(|base| (name(base), EACH_PACKET)));
        }
        notes.extend(program.beside_nat().into_iter().map(|base| (name(base), BESIDE_NAT)));
        State { nft, counters, objects, kernel, bases, inputs, notes, carried }
    }

    /// Counts of kernel and workers together; those of the kernel alone if the workers do not count.
    fn count(&self, counter: Option<&usize>, kernel: (u64, u64)) -> Count {
        let workers = counter.map_or((0, 0), |counter| self.nft.counted(*counter));
        Count {
            packets: kernel.0.wrapping_add(workers.0),
            bytes: kernel.1.wrapping_add(workers.1),
            kernel_packets: kernel.0,
            kernel_bytes: kernel.1,
        }
    }

    fn view(&'a self, table: &'a Table) -> TableView<'a> {
        let name = format!("{} {}", table.family, table.name);
        TableView {
            state: self,
            table,
            printer: Printer::new(table),
            reached: self.reached(table, &name, &self.bases),
            of_ipsec: self.reached(table, &name, &self.inputs),
            name,
        }
    }

    /// Names of the chains of a table that are reached from base chains of these names.
    fn reached(&self, table: &'a Table, name: &str, bases: &HashSet<&str>) -> HashSet<&'a str> {
        let chains: HashMap<&str, &Chain> =
            table.chains.iter().map(|chain| (chain.name.as_str(), chain)).collect();
        let vmaps: HashMap<&str, Vec<&str>> = table
            .sets
            .iter()
            .map(|set| {
                let data = set.elements.iter().filter_map(|element| match &element.data {
                    Some(Data::Verdict(verdict)) => target(verdict),
                    _ => None,
                });
                (set.name.as_str(), data.collect())
            })
            .collect();
        let is_base = |chain: &&Chain| {
            chain.base.is_some() && bases.contains(format!("{name} {}", chain.name).as_str())
        };
        let bases = table.chains.iter().filter(is_base);
        let mut open: Vec<&str> = bases.map(|chain| chain.name.as_str()).collect();
        let mut reached = HashSet::new();
        while let Some(chain) = open.pop() {
            if !reached.insert(chain) {
                continue;
            }
            let rules = chains.get(chain).into_iter().flat_map(|chain| &chain.rules);
            for expr in rules.flat_map(|rule| &rule.exprs) {
                match expr {
                    Expr::Verdict(verdict) => open.extend(target(verdict)),
                    Expr::Lookup { set, is_vmap: true, .. } => {
                        open.extend(vmaps.get(set.as_str()).into_iter().flatten());
                    }
                    _ => {}
                }
            }
        }
        reached
    }

    fn text(&self, table: &Table, to: &mut RowWriter<'_>) -> io::Result<()> {
        let view = self.view(table);
        to.lines(&format!("table {} {} {{", table.family, one_line(&table.name)))?;
        if table.dormant {
            to.lines(&"\tflags dormant")?;
        }
        // An empty line before each but the first.
        let mut between = "";
        for object in view.objects() {
            let ObjectJson { name, count: Count { packets, bytes, .. }, .. } = object;
            let name = one_line(name);
            to.lines(&format!(
                "{between}\tcounter {name} {{\n\t\tpackets {packets} bytes {bytes}\n\t}}"
            ))?;
            between = "\n";
        }
        for set in view.printer.sets() {
            to.lines(&format!("{between}\t{}", set.join("\n\t")))?;
            between = "\n";
        }
        for chain in &table.chains {
            let chain_name = chain.name.as_str();
            let base = format!("{} {chain_name}", view.name);
            let note = match view.reached.contains(chain_name) {
                true => {
                    self.notes.get(base.as_str()).map_or_else(String::new, |it| format!(" # {it}"))
                }
                false if view.of_ipsec.contains(chain_name) => format!(" # {OF_IPSEC}"),
                false => format!(" # {NOT_REACHED}"),
            };
            to.lines(&format!("{between}\tchain {} {{{note}", one_line(&chain.name)))?;
            if let Some(base) = &chain.base {
                to.lines(&format!("\t\t{}", print::base_chain(table.family, base)))?;
            }
            for rule in &chain.rules {
                to.lines(&format!("\t\t{}", view.rule_line(chain, rule)))?;
            }
            to.lines(&"\t}")?;
            between = "\n";
        }
        to.lines(&"}")
    }

    fn json(&self, table: &Table, to: &mut RowWriter<'_>) -> io::Result<()> {
        let view = self.view(table);
        to.element(&TableJson {
            family: table.family.to_string(),
            name: &table.name,
            dormant: table.dormant,
            objects: view.objects(),
            chains: Each(|| table.chains.iter().map(|chain| view.chain(chain))),
        })
    }
}

/// The chain that a verdict leads to.
fn target(verdict: &RuleVerdict) -> Option<&str> {
    match verdict {
        RuleVerdict::Jump(chain) | RuleVerdict::Goto(chain) => Some(chain),
        _ => None,
    }
}

/// A table.
struct TableView<'a> {
    state: &'a State<'a>,
    table: &'a Table,
    printer: Printer<'a>,
    reached: HashSet<&'a str>,
    /// Those that IPsec packets to the router reach.
    of_ipsec: HashSet<&'a str>,
    /// Family and name.
    name: String,
}

impl<'a> TableView<'a> {
    fn evaluated(&self, chain: &Chain, rule: &Rule) -> Evaluated<'_> {
        let name = chain.name.as_str();
        if !self.reached.contains(name) && !self.of_ipsec.contains(name) {
            return Evaluated::Kernel(NOT_REACHED);
        }
        let place = (self.name.as_str(), chain.name.as_str(), rule.handle);
        self.state.kernel.get(&place).map_or(Evaluated::Userspace, |why| Evaluated::Kernel(why))
    }

    /// What packets of carried connections meet in a rule. `None`: connections are not tracked, or workers do not run the
    /// chain on packets that they forward.
    fn meets(&self, chain: &Chain, rule: &Rule) -> Option<&Meets> {
        let is_run = self.reached.contains(chain.name.as_str());
        let found = self.state.carried.get(&std::ptr::from_ref(rule)).filter(|_| is_run)?;
        Some(&found.0)
    }

    /// Whether no packet of workers reaches what a rule leaves to the kernel: packets of tracked families that are of no
    /// carried connection are the kernel's already.
    fn is_not_met(&self, rule: &Rule) -> bool {
        let found = self.state.carried.get(&std::ptr::from_ref(rule));
        found.is_some_and(|(meets, is_tracked, _)| *is_tracked && *meets != Meets::Kernel)
    }

    /// The connections that a rule leaves to the kernel, of those that reach it.
    fn left_of(&self, rule: &Rule) -> Option<&'static str> {
        self.state.carried.get(&std::ptr::from_ref(rule))?.2.text()
    }

    /// What in a rule differs between packets of a carried connection.
    fn varying(&self, rule: &'a Rule, meets: Option<&Meets>) -> Option<String> {
        let Some(Meets::PerPacket(by)) = meets else { return None };
        varying::reason(&self.printer, self.table, rule, by)
    }

    /// The counts of a counter of a rule.
    fn count(&self, chain: &Chain, rule: &Rule, at: usize) -> Option<Count> {
        let Some(Expr::Counter { packets, octets }) = rule.exprs.get(at) else { return None };
        let place = (self.name.as_str(), chain.name.as_str(), rule.handle, at);
        Some(self.state.count(self.state.counters.get(&place), (*packets, *octets)))
    }

    fn rule_line(&self, chain: &Chain, rule: &'a Rule) -> String {
        let counts = |at| self.count(chain, rule, at).map(|count| (count.packets, count.bytes));
        let text = self.printer.rule(rule, &counts);
        let meets = self.meets(chain, rule);
        let note = match self.evaluated(chain, rule) {
            Evaluated::Kernel(why) if why != NOT_REACHED => {
                let note = if self.is_not_met(rule) { NOT_MET } else { "" };
                format!(", left to the kernel: {}{note}", one_line(why))
            }
            _ => {
                let varying = self.varying(rule, meets).map(|it| format!(", per packet: {it}"));
                let left = self.left_of(rule).map(|it| format!(", left to the kernel: {it}"));
                varying.unwrap_or_default() + &left.unwrap_or_default()
            }
        };
        format!("{text} # handle {}{note}", rule.handle)
    }

    fn objects(&self) -> Vec<ObjectJson<'a>> {
        let counters = self.table.objects.iter().filter(|object| object.kind == OBJECT_COUNTER);
        let object = |object: &'a crate::netfilter::nft::ruleset::Object| ObjectJson {
            name: &object.name,
            kind: "counter",
            count: self.state.count(
                self.state.objects.get(&(self.name.as_str(), object.name.as_str())),
                object.counter,
            ),
        };
        counters.map(object).collect()
    }

    fn chain<'b>(&'b self, chain: &'a Chain) -> impl Serialize + 'b {
        let base = chain.base.as_ref();
        ChainJson {
            name: &chain.name,
            kind: base.map(|base| base.kind.as_str()),
            hook: base.map(|base| print::hook(self.table.family, base.hook)),
            priority: base.map(|base| base.priority),
            policy: base.map(print::policy),
            rules: Each(move || chain.rules.iter().map(move |rule| self.rule(chain, rule))),
        }
    }

    fn rule(&self, chain: &Chain, rule: &'a Rule) -> RuleJson {
        let (evaluated_by, why) = match self.evaluated(chain, rule) {
            Evaluated::Userspace => ("userspace", None),
            Evaluated::Kernel(why) => ("kernel", Some(why.to_owned())),
        };
        RuleJson {
            handle: rule.handle,
            text: self.printer.rule(rule, &|_| None),
            counters: (0..rule.exprs.len()).filter_map(|at| self.count(chain, rule, at)).collect(),
            evaluated_by,
            why,
            carried: self.meets(chain, rule).map(|meets| match meets {
                Meets::NotReached => "not_reached",
                Meets::Constant => "constant",
                Meets::PerPacket(_) => "per_packet",
                Meets::Kernel => "kernel",
            }),
            differs: self.varying(rule, self.meets(chain, rule)),
            left_of: self.left_of(rule),
        }
    }
}

/// A list that is made while it is written.
struct Each<F>(F);

impl<F, I> Serialize for Each<F>
where
    F: Fn() -> I,
    I: Iterator,
    I::Item: Serialize,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

#[derive(Serialize)]
struct TableJson<'a, C> {
    family: String,
    name: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dormant: bool,
    objects: Vec<ObjectJson<'a>>,
    chains: C,
}

#[derive(Serialize)]
struct ObjectJson<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(flatten)]
    count: Count,
}

#[derive(Serialize)]
struct ChainJson<'a, R> {
    name: &'a str,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hook: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'static str>,
    rules: R,
}

#[derive(Serialize)]
struct RuleJson {
    handle: u64,
    text: String,
    counters: Vec<Count>,
    evaluated_by: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// While connections are tracked.
    #[serde(skip_serializing_if = "Option::is_none")]
    carried: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    differs: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    left_of: Option<&'static str>,
}

/// Counts of the kernel, when the ruleset was read, and of the workers together, and those of the kernel alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Count {
    packets: u64,
    bytes: u64,
    kernel_packets: u64,
    kernel_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{Envelope, Rendered, Response};
    use crate::netfilter::conntrack::Ct;
    use crate::netfilter::hook::{Hook, HookState};
    use crate::netfilter::nft::NftVerdict;
    use crate::netfilter::nft::ruleset::{
        BaseChain, BitwiseOp, CmpOp, CtKey, Object, PayloadBase, Reg, Ruleset,
    };
    use crate::netfilter::nft::{Around, Family, Journal, Transport, compile};
    use crate::skb::{SkBuff, Umem};
    use crate::trace::NoTrace;

    const COUNTER: Expr = Expr::Counter { packets: 10, octets: 1000 };

    fn chain(name: &str, hook: Option<u32>, rules: Vec<Rule>) -> Chain {
        let base = hook.map(|hook| BaseChain {
            kind: "filter".into(),
            hook,
            priority: 0,
            policy_drops: true,
            devices: vec![],
        });
        Chain { name: name.into(), base, rules }
    }

    fn rule(handle: u64, exprs: Vec<Expr>) -> Rule {
        Rule { handle, exprs, comment: None }
    }

    /// A ruleset that one packet of 20 octets has passed.
    fn passed() -> Arc<Nft> {
        let limit = Expr::Other("limit".into());
        let verdict = |of| Expr::Verdict(of);
        let forward = vec![
            rule(4, vec![COUNTER, Expr::Objref { kind: OBJECT_COUNTER, name: "hits".into() }]),
            rule(5, vec![verdict(RuleVerdict::Jump("web\n".into()))]),
            rule(6, vec![limit, verdict(RuleVerdict::Drop)]),
        ];
        let web = vec![rule(7, vec![verdict(RuleVerdict::Accept)])];
        let input = vec![rule(8, vec![COUNTER])];
        let table = Table {
            family: Family::Inet,
            name: "filter".into(),
            handle: 1,
            dormant: false,
            chains: vec![
                chain("forward", Some(2), forward),
                chain("web\n", None, web),
                chain("input", Some(1), input),
            ],
            sets: vec![],
            objects: vec![Object { name: "hits".into(), kind: OBJECT_COUNTER, counter: (1, 2) }],
            flowtables: vec![],
        };
        let ruleset = Ruleset { generation: 1, tables: vec![table] };
        let program = compile(&ruleset, 0);
        let nft = Nft::new(ruleset, program, 2, None);
        let mut pool = Umem::anonymous(4).into_pool();
        let mut octets = [0; 20];
        octets[..4].copy_from_slice(&[0x45, 0, 0, 20]);
        let mut skb = SkBuff::of_octets(&mut pool, &octets).expect("a frame");
        skb.set_network_header(0);
        let (hook, pf, transport) = (Hook::Forward, Family::Ip, Transport::default());
        let at = HookState { hook, pf, iif: None, oif: None, transport };
        let mut journal = Journal::new();
        let base = nft.program().chains(pf, hook)[0];
        let around =
            Around { ct: Ct::Off, tables: None, now_ns: 0, received_by: None, sent_by: None };
        let verdict = nft.run(base, &mut skb, &at, around, &mut journal, &mut NoTrace);
        assert_eq!(verdict, NftVerdict::Accept);
        nft.commit(&mut journal, 1);
        Arc::new(nft)
    }

    fn rendered(nft: Option<Arc<Nft>>, format: Format) -> Rendered {
        let mut octets = Vec::new();
        let mut writer = RowWriter::new(&mut octets, format);
        let more = Rules::new(nft, format).write_some(&mut writer).expect("written");
        assert!(!more);
        writer.finish().expect("written");
        let answer: Envelope<Response> = serde_json::from_slice(&octets).expect("an answer");
        match answer.body {
            Response::Rendered(rendered) => rendered,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn counts_of_kernel_and_workers_are_added() {
        let count = |packets, bytes, kernel_packets, kernel_bytes| {
            serde_json::json!({
                "packets": packets, "bytes": bytes,
                "kernel_packets": kernel_packets, "kernel_bytes": kernel_bytes,
            })
        };
        let mut hits = count(2, 22, 1, 2);
        hits["name"] = "hits".into();
        hits["type"] = "counter".into();
        let base = |name: &str, hook: &str, rules: serde_json::Value| {
            serde_json::json!({
                "name": name, "type": "filter", "hook": hook, "priority": 0, "policy": "drop",
                "rules": rules,
            })
        };
        let expected = serde_json::json!([{
            "family": "inet",
            "name": "filter",
            "objects": [hits],
            "chains": [
                base("forward", "forward", serde_json::json!([
                    {
                        "handle": 4, "text": "counter counter name \"hits\"",
                        "counters": [count(11, 1020, 10, 1000)], "evaluated_by": "userspace",
                    },
                    {
                        "handle": 5, "text": "jump web\\x0a",
                        "counters": [], "evaluated_by": "userspace",
                    },
                    {
                        "handle": 6, "text": "[ limit ] drop",
                        "counters": [], "evaluated_by": "kernel", "why": "limit",
                    },
                ])),
                {
                    "name": "web\n",
                    "rules": [{
                        "handle": 7, "text": "accept",
                        "counters": [], "evaluated_by": "userspace",
                    }],
                },
                base("input", "input", serde_json::json!([{
                    "handle": 8, "text": "counter", "counters": [count(10, 1000, 10, 1000)],
                    "evaluated_by": "userspace",
                }])),
            ],
        }]);
        assert_eq!(rendered(Some(passed()), Format::Json), Rendered::Json(expected));
    }

    #[test]
    fn text_is_that_of_nft_with_notes() {
        let expected = "\
table inet filter {
\tcounter hits {
\t\tpackets 2 bytes 22
\t}

\tchain forward {
\t\ttype filter hook forward priority filter; policy drop;
\t\tcounter packets 11 bytes 1020 counter name \"hits\" # handle 4
\t\tjump web\\x0a # handle 5
\t\t[ limit ] drop # handle 6, left to the kernel: limit
\t}

\tchain web\\x0a {
\t\taccept # handle 7
\t}

\tchain input { # of packets in userspace, only those of IPsec reach the chain
\t\ttype filter hook input priority filter; policy drop;
\t\tcounter packets 10 bytes 1000 # handle 8
\t}
}
";
        assert_eq!(rendered(Some(passed()), Format::Text), Rendered::Text(expected.into()));
    }

    #[test]
    fn what_carried_connections_meet_is_noted() {
        let (reg, four) = (Reg(0), vec![6, 0, 0, 0]);
        let ttl = Expr::Payload { dreg: reg, base: PayloadBase::Network, offset: 8, len: 1 };
        let ttl = vec![ttl, Expr::Cmp { sreg: reg, op: CmpOp::Lt, data: vec![10] }];
        let op = BitwiseOp::MaskXor { mask: four, xor: vec![0; 4] };
        let established = vec![
            Expr::Ct { dreg: reg, key: CtKey::State },
            Expr::Bitwise { sreg: reg, dreg: reg, len: 4, op },
            Expr::Cmp { sreg: reg, op: CmpOp::Neq, data: vec![0; 4] },
            Expr::Verdict(RuleVerdict::Accept),
        ];
        let other = |text: &str| vec![Expr::Other(text.into())];
        let rules = vec![
            rule(2, ttl),
            rule(3, other("limit")),
            rule(4, established),
            rule(5, other("log")),
        ];
        let table = Table {
            family: Family::Ip,
            name: "t".into(),
            handle: 1,
            dormant: false,
            chains: vec![chain("f", Some(2), rules)],
            sets: vec![],
            objects: vec![],
            flowtables: vec![],
        };
        let ruleset = Ruleset { generation: 1, tables: vec![table] };
        let program = compile(&ruleset, 0);
        let nft = Arc::new(Nft::new(ruleset, program, 1, None));
        let Rendered::Text(text) = rendered(Some(Arc::clone(&nft)), Format::Text) else {
            panic!("no text")
        };
        let notes: Vec<&str> =
            text.lines().filter_map(|line| line.split_once(" # ").map(|(_, note)| note)).collect();
        let expected = [
            "handle 2, per packet: ip ttl",
            "handle 3, left to the kernel: limit",
            "handle 4",
            "handle 5, left to the kernel: log (reached by no carried packet)",
        ];
        assert_eq!(notes, expected);
        let Rendered::Json(json) = rendered(Some(nft), Format::Json) else { panic!("no JSON") };
        let rules = &json[0]["chains"][0]["rules"];
        let carried: Vec<_> = (0..4).map(|n| rules[n]["carried"].as_str()).collect();
        let expected = ["per_packet", "kernel", "constant", "not_reached"].map(Some);
        assert_eq!(carried, expected);
        assert_eq!(
            (&rules[0]["differs"], &rules[2]["differs"]),
            (&serde_json::json!("ip ttl"), &serde_json::Value::Null)
        );
    }

    #[test]
    fn without_a_ruleset_there_is_a_line_or_an_empty_array() {
        let none = format!("{NONE}\n");
        assert_eq!(rendered(None, Format::Text), Rendered::Text(none));
        assert_eq!(rendered(None, Format::Json), Rendered::Json(serde_json::json!([])));
    }
}
