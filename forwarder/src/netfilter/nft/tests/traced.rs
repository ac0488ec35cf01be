//! What a trace has of rules.

use super::*;
use crate::trace::step::RuleResult;
use crate::trace::{Record, Step, Value};

fn named(name: &str, handle: u64, exprs: Vec<Expr>) -> Rule {
    Rule { handle, exprs, comment: Some(name.to_owned()) }
}

/// Names of the rules that were evaluated, with what they decided.
fn evaluated(ruleset: Ruleset) -> (Vec<(String, RuleResult)>, Vec<Step>) {
    let program = compile(&ruleset, 0);
    let nft = Nft::new(ruleset, program, 1, None);
    let mut record = Record::new();
    let packet = ipv4(6, 0, &[], &tcp(&[]));
    run_traced(nft.program(), &Input::new(Family::Ip, packet), &mut record);
    let rule = |step: &Step| match *step {
        Step::Rule { step, op, result } => {
            let found = nft.traced_rule(step, op).expect("a rule");
            let name = found.rule.comment.clone().unwrap_or_default();
            Some((format!("{} {name}", found.chain.name), result))
        }
        _ => None,
    };
    (record.steps().iter().filter_map(rule).collect(), record.steps().to_vec())
}

#[test]
fn every_rule_is_shown_that_a_classifier_skips() {
    let rules = (0..20).map(|port| {
        let exprs = vec![transport(2, 2), cmp(R1, &[0, port]), Expr::Verdict(RuleVerdict::Drop)];
        named(&format!("{port}"), u64::from(port) + 1, exprs)
    });
    let last = named("last", 100, vec![Expr::Verdict(RuleVerdict::Accept)]);
    let rules: Vec<Rule> = rules.chain([last]).collect();
    let ruleset = Ruleset {
        generation: 1,
        tables: vec![table(Family::Ip, vec![base("b", 2, 0, rules)], vec![])],
    };
    assert!(!compile(&ruleset, 0).classifiers.is_empty(), "no classifier");
    let (rules, _) = evaluated(ruleset);
    assert_eq!(rules.len(), 21, "{rules:?}");
    let missed = RuleResult::NoMatch(Value::new(&tcp(&[])[2..4]));
    for (port, (name, result)) in rules.iter().enumerate().take(20) {
        assert_eq!((name, *result), (&format!("b {port}"), missed));
    }
    assert_eq!(rules[20], ("b last".to_owned(), RuleResult::Accept));
}

#[test]
fn jumps_ends_and_the_policy_are_in_order() {
    let jump = named("jump", 1, vec![Expr::Verdict(RuleVerdict::Jump("c".into()))]);
    let passed = named("passed", 2, vec![counter()]);
    let chains = vec![regular("c", vec![passed]), base("b", 2, 0, vec![jump])];
    let tables = vec![table(Family::Ip, chains, vec![])];
    let (rules, steps) = evaluated(Ruleset { generation: 1, tables });
    let expected =
        [("b jump".to_owned(), RuleResult::Jump(0)), ("c passed".to_owned(), RuleResult::Passed)];
    assert_eq!(rules, expected);
    let others = steps.iter().filter(|step| !matches!(step, Step::Rule { .. }));
    let expected = [Step::ChainEnd, Step::ChainEnd, Step::Policy { is_drop: false }];
    assert!(others.eq(&expected), "{steps:?}");
}
