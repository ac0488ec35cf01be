//! Chains, hooks and reports.

use super::*;

fn to(name: &str) -> Expr {
    Expr::Verdict(RuleVerdict::Jump(name.to_owned()))
}

fn ruleset(tables: Vec<Table>) -> Ruleset {
    Ruleset { generation: 1, tables }
}

fn verdict_of(chains: Vec<Chain>) -> Verdict {
    let ruleset = ruleset(vec![table(Family::Inet, chains, Vec::new())]);
    let output = run(&compile(&ruleset, 0), &tcp4());
    assert_eq!(output, reference::run(&ruleset, 0, &tcp4()));
    output.verdict
}

#[test]
fn base_chains_run_by_priority_and_family() {
    let one = |family, name: &str, priority| {
        let hook = if family == Family::Netdev { 0 } else { 2 };
        let mut table = table(family, vec![base(name, hook, priority, Vec::new())], Vec::new());
        table.name = name.to_owned();
        table
    };
    let mut dormant = one(Family::Ip, "dormant", 0);
    dormant.dormant = true;
    let program = compile(
        &ruleset(vec![
            one(Family::Inet, "late", 10),
            one(Family::Ip, "a", 0),
            one(Family::Ip6, "six", 5),
            one(Family::Ip, "b", 0),
            one(Family::Netdev, "netdev", 0),
            one(Family::Other(7), "bridge", 0),
            one(Family::Inet, "early", -10),
            dormant,
        ]),
        0,
    );
    let names = |family| {
        let chains = program.chains(family, Hook::Forward).iter();
        chains.map(|chain| program.chain_name(*chain)).collect::<Vec<_>>()
    };
    let late_first = ["inet early early", "ip b b", "ip a a", "inet late late"];
    assert_eq!(names(Family::Ip), late_first, "the last one of a priority runs first");
    assert_eq!(names(Family::Ip6), ["inet early early", "ip6 six six", "inet late late"]);
    assert!(program.chains(Family::Inet, Hook::Forward).is_empty());
    let at_ingress = program.ingress_chains().map(|chain| program.chain_name(chain));
    assert_eq!(at_ingress.collect::<Vec<_>>(), ["netdev netdev netdev"]);
    assert!(program.unsupported().is_empty());
}

#[test]
fn chains_of_other_types_are_listed() {
    let chain = |name: &str, hook, kind: &str| {
        let mut chain = base(name, hook, 0, Vec::new());
        if let Some(base) = &mut chain.base {
            base.kind = kind.to_owned();
        }
        chain
    };
    let chains = vec![
        chain("POSTROUTING", 4, "nat"),
        chain("OUTPUT", 3, "nat"),
        chain("INPUT", 1, "nat"),
        chain("MANGLE", 3, "route"),
        chain("INGRESS", 5, "filter"),
        chain("PRE", 0, "new"),
    ];
    let program = compile(&ruleset(vec![table(Family::Ip, chains, Vec::new())]), 0);
    assert_eq!(program.unsupported(), ["chain ip t PRE (type new, hook prerouting)"]);
    let nat = "chain ip t POSTROUTING (type nat, hook postrouting)";
    assert_eq!(program.uses_conntrack().as_deref(), Some(nat));
    assert_eq!(program.chains(Family::Ip, Hook::LocalOut).len(), 1);
    assert!(program.chains(Family::Ip, Hook::LocalIn).is_empty());
}

#[test]
fn a_chain_of_type_route_that_changes_the_mark_is_left_to_the_kernel() {
    let exprs =
        vec![Expr::Immediate { dreg: R1, value: vec![1, 0, 0, 0] }, Expr::SetMark { sreg: R1 }];
    let mut chain = base("OUTPUT", 3, 0, vec![rule(exprs)]);
    if let Some(base) = &mut chain.base {
        base.kind = "route".to_owned();
    }
    let program = compile(&ruleset(vec![table(Family::Inet, vec![chain], Vec::new())]), 0);
    let mut input = tcp4();
    input.hook = Hook::LocalOut;
    assert_eq!(run(&program, &input).verdict, Verdict::Kernel);
    input.mark = u32::from_ne_bytes([1, 0, 0, 0]);
    assert_eq!(run(&program, &input).verdict, Verdict::Accept);
}

#[test]
fn return_and_the_end_of_a_chain_lead_back() {
    let back =
        regular("back", vec![rule(vec![Expr::Verdict(RuleVerdict::Return)]), rule(vec![ACCEPT])]);
    let end = regular("end", Vec::new());
    let rules = vec![rule(vec![to("back")]), rule(vec![to("end")]), rule(vec![DROP])];
    assert_eq!(verdict_of(vec![base("b", 2, 0, rules), back, end.clone()]), Verdict::Drop);
    // goto does not lead back, so the policy decides.
    let goto = Expr::Verdict(RuleVerdict::Goto("end".to_owned()));
    let rules = vec![rule(vec![goto]), rule(vec![DROP])];
    assert_eq!(verdict_of(vec![base("b", 2, 0, rules), end]), Verdict::Accept);
}

#[test]
fn continue_and_break_stay_in_the_chain() {
    let continues = vec![rule(vec![Expr::Verdict(RuleVerdict::Continue), DROP])];
    assert_eq!(verdict_of(vec![base("b", 2, 0, continues)]), Verdict::Drop);
    let breaks = vec![rule(vec![Expr::Verdict(RuleVerdict::Break), DROP])];
    assert_eq!(verdict_of(vec![base("b", 2, 0, breaks)]), Verdict::Accept);
}

#[test]
fn seventeen_jumps_drop() {
    let chains = |depth: usize| {
        let mut chains = vec![base("b", 2, 0, vec![rule(vec![to("c1")])])];
        for n in 1..depth {
            chains.push(regular(&format!("c{n}"), vec![rule(vec![to(&format!("c{}", n + 1))])]));
        }
        chains.push(regular(&format!("c{depth}"), vec![rule(vec![ACCEPT])]));
        chains
    };
    assert_eq!(verdict_of(chains(16)), Verdict::Accept);
    assert_eq!(verdict_of(chains(17)), Verdict::Drop);
}

#[test]
fn loops_and_unknown_chains_are_left_to_the_kernel() {
    let itself = regular("a", vec![rule(vec![to("a")])]);
    let b = || base("b", 2, 0, vec![rule(vec![to("a")])]);
    assert_eq!(verdict_of(vec![b(), itself]), Verdict::Kernel);
    assert_eq!(verdict_of(vec![b()]), Verdict::Kernel);
    let long = (0..50_000).map(|n| {
        let next = format!("{}", (n + 1) % 50_000);
        regular(&n.to_string(), vec![rule(vec![to(&next)])])
    });
    let mut chains: Vec<_> = long.collect();
    chains.push(base("b", 2, 0, vec![rule(vec![to("0")])]));
    let program = compile(&ruleset(vec![table(Family::Inet, chains, Vec::new())]), 0);
    assert_eq!(run(&program, &tcp4()).verdict, Verdict::Kernel);
}

#[test]
fn more_counters_than_a_journal_has_are_left_to_the_kernel() {
    let rules = |count| vec![base("b", 2, 0, (0..count).map(|_| rule(vec![counter()])).collect())];
    assert_eq!(verdict_of(rules(JOURNAL_MAX)), Verdict::Accept);
    assert_eq!(verdict_of(rules(JOURNAL_MAX + 1)), Verdict::Kernel);
}

#[test]
fn registers_keep_their_values_between_rules() {
    let load = rule(vec![network(12, 4), cmp(R1, &[10, 0, 0, 1])]);
    let rules = vec![load, rule(vec![cmp(R1, &[10, 0, 0, 1]), DROP])];
    assert_eq!(verdict_of(vec![base("b", 2, 0, rules)]), Verdict::Drop);
}

#[test]
fn reports_name_reachable_rules() {
    let numbered = |handle, exprs| Rule { handle, exprs, comment: None };
    let other = |text: &str| Expr::Other(text.into());
    let chains = vec![
        regular("unused", vec![numbered(1, vec![other("ct state"), ACCEPT])]),
        regular(
            "used",
            vec![numbered(2, vec![other("limit")]), numbered(3, vec![other("ct mark")])],
        ),
        base("INPUT", 1, 0, vec![numbered(4, vec![other("ct state")])]),
        base("b", 2, 0, vec![numbered(5, vec![DROP]), numbered(6, vec![to("used")])]),
    ];
    let program = compile(&ruleset(vec![table(Family::Inet, chains, Vec::new())]), 0);
    let rules: Vec<_> = program
        .kernel_rules()
        .map(|rule| (rule.table.as_str(), rule.chain.as_str(), rule.handle, rule.text.as_str()))
        .collect();
    assert_eq!(rules, [("inet t", "used", 2, "limit"), ("inet t", "used", 3, "ct mark")]);
    assert_eq!(program.uses_conntrack().as_deref(), Some("inet t used handle 3: ct mark"));
    let counted = forward(vec![rule(vec![other("ctx")]), rule(vec![other("natural")])]);
    assert_eq!(compile(&counted, 0).uses_conntrack(), None);
}

#[test]
fn with_a_flowtable_connections_are_the_kernels_whatever_the_rules_are() {
    let mut with = table(Family::Ip, vec![base("b", 2, 0, vec![rule(vec![DROP])])], Vec::new());
    with.flowtables = vec!["ft".to_owned()];
    let ruleset = ruleset(vec![with]);
    assert_eq!(ruleset.flowtables().collect::<Vec<_>>(), ["ip t ft"]);
    let program = compile(&ruleset, 0);
    assert_eq!(program.uses_conntrack().as_deref(), Some("ip t flowtable ft"));
    assert_eq!(program.tracked_families(), [true, false]);
}

#[test]
fn lists_of_rules_become_classifiers() {
    let list = |count: u8| {
        let address = |n| rule(vec![network(12, 4), cmp(R1, &[10, 0, 0, n]), counter(), DROP]);
        forward((0..count).map(address).collect())
    };
    assert_eq!(compile(&list(100), 0).classifiers.len(), 1);
    assert!(compile(&list(3), 0).classifiers.is_empty());
    // Not if a rule reads a register that it has not written.
    let mut odd = list(100);
    odd.tables[0].chains[0].rules.push(rule(vec![cmp(R1, &[0])]));
    assert!(compile(&odd, 0).classifiers.is_empty());
}

#[test]
fn tables_whose_chains_have_no_known_order_and_set_marks_are_left_out() {
    let mark = rule(vec![Expr::SetMark { sreg: R1 }]);
    let mut ruleset = forward(vec![rule(vec![DROP])]);
    let mut other = forward(vec![rule(vec![DROP])]).tables.remove(0);
    other.name = "other".to_owned();
    ruleset.tables.push(other);
    assert!(compile(&ruleset, 0).unsupported().is_empty());
    ruleset.tables[1].chains[0].rules.push(mark);
    assert_eq!(compile(&ruleset, 0).unsupported().len(), 1);
    ruleset.tables[1].chains[0].base.as_mut().expect("a base chain").priority += 1;
    assert!(compile(&ruleset, 0).unsupported().is_empty());
}

#[test]
fn programs_are_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Program>();
    shared::<CounterPage>();
}
