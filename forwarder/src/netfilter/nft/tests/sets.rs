//! Sets and maps.

use super::*;

fn set(flags: u32, key_len: u8, elements: Vec<Element>) -> Set {
    Set {
        name: "s".to_owned(),
        flags,
        key_len,
        data_len: 0,
        fields: Vec::new(),
        elements,
        unsupported: None,
    }
}

fn element(key: &[u8]) -> Element {
    Element {
        key: key.to_vec(),
        key_end: None,
        is_interval_end: false,
        is_catchall: false,
        data: None,
        expires_ms: None,
    }
}

fn end(key: &[u8]) -> Element {
    Element { is_interval_end: true, ..element(key) }
}

fn catchall() -> Element {
    Element { is_catchall: true, ..element(&[]) }
}

fn lookup(dreg: Option<Reg>, is_vmap: bool, invert: bool) -> Expr {
    Expr::Lookup { sreg: R1, dreg, is_vmap, set: "s".to_owned(), invert }
}

#[track_caller]
fn output(set: &Set, exprs: Vec<Expr>, input: &Input) -> Output {
    let chains =
        vec![base("FORWARD", 2, 0, vec![rule(exprs)]), regular("c", vec![rule(vec![DROP])])];
    let tables = vec![table(Family::Inet, chains, vec![set.clone()])];
    let ruleset = Ruleset { generation: 1, tables };
    let output = run(&compile(&ruleset, 0), input);
    assert_eq!(output, reference::run(&ruleset, 0, input));
    output
}

/// Whether an address is in the set, at a time in milliseconds.
#[track_caller]
fn has(set: &Set, address: [u8; 4], now_ms: u64) -> bool {
    let mut input = tcp4();
    input.net[12..16].copy_from_slice(&address);
    input.now_ns = now_ms * 1_000_000;
    let found = output(set, vec![network(12, 4), lookup(None, false, false), DROP], &input);
    let without = output(set, vec![network(12, 4), lookup(None, false, true), DROP], &input);
    let has_catchall = set.elements.iter().any(|element| element.is_catchall);
    assert!(has_catchall || found.verdict != without.verdict, "inverted");
    assert_ne!(found.verdict, Verdict::Kernel);
    found.verdict == Verdict::Drop
}

#[test]
fn exact_sets() {
    let mut set = set(0, 4, vec![element(&[10, 0, 0, 1]), element(&[10, 0, 0, 3])]);
    assert!(has(&set, [10, 0, 0, 1], 0) && has(&set, [10, 0, 0, 3], 0));
    assert!(!has(&set, [10, 0, 0, 2], 0));
    set.elements.push(catchall());
    assert!(has(&set, [10, 0, 0, 2], 0));
    set.elements.clear();
    assert!(!has(&set, [10, 0, 0, 2], 0));
}

#[test]
fn intervals_end_before_their_end() {
    let set = set(
        SET_INTERVAL,
        4,
        vec![
            end(&[0; 4]),
            element(&[10, 0, 0, 0]),
            end(&[10, 0, 1, 0]),
            element(&[10, 0, 1, 0]),
            end(&[10, 0, 1, 1]),
            element(&[255, 0, 0, 0]),
        ],
    );
    assert!(has(&set, [10, 0, 0, 0], 0) && has(&set, [10, 0, 0, 255], 0));
    assert!(has(&set, [10, 0, 1, 0], 0), "one interval ends where the next one begins");
    assert!(!has(&set, [10, 0, 1, 1], 0) && !has(&set, [9, 255, 255, 255], 0));
    assert!(has(&set, [255, 255, 255, 255], 0), "no end");
}

#[test]
fn expired_elements_do_not_match() {
    let short = Element { expires_ms: Some(5), ..element(&[10, 0, 0, 0]) };
    for flags in [0, SET_INTERVAL] {
        let mut elements = vec![short.clone()];
        elements.extend((flags != 0).then(|| end(&[10, 0, 0, 9])));
        let mut set = set(flags, 4, elements);
        assert!(has(&set, [10, 0, 0, 0], 4) && !has(&set, [10, 0, 0, 0], 5));
        set.elements.push(Element { expires_ms: Some(7), ..catchall() });
        assert!(has(&set, [10, 0, 0, 0], 6) && !has(&set, [10, 0, 0, 0], 7));
    }
}

#[test]
fn concatenations_with_ranges_match_the_first_element() {
    let range = |from: [u8; 8], to: [u8; 8], mark: u8| Element {
        key_end: Some(to.to_vec()),
        data: Some(Data::Value(vec![mark, 0, 0, 0])),
        ..element(&from)
    };
    let mut set = set(
        SET_INTERVAL | SET_CONCAT | SET_MAP,
        8,
        vec![
            range([10, 0, 0, 0, 0, 70, 0, 0], [10, 0, 0, 255, 0, 90, 0, 0], 1),
            range([10, 0, 0, 1, 0, 80, 0, 0], [10, 0, 0, 1, 0, 80, 0, 0], 2),
            range([10, 0, 0, 0, 0, 0, 0, 0], [10, 255, 255, 255, 255, 255, 0, 0], 3),
            range([0, 0, 0, 0, 0, 22, 0, 0], [255, 255, 255, 255, 0, 22, 0, 0], 4),
            range([11, 0, 0, 5, 1, 0, 0, 0], [11, 0, 0, 9, 1, 2, 0, 0], 5),
        ],
    );
    (set.fields, set.data_len) = (vec![4, 2], 4);
    let mark = |address: [u8; 4], port: u16| {
        let mut input = tcp4();
        input.net[12..16].copy_from_slice(&address);
        input.net[22..24].copy_from_slice(&port.to_be_bytes());
        let port = Expr::Payload { dreg: Reg(4), base: PayloadBase::Transport, offset: 2, len: 2 };
        let set_mark = Expr::SetMark { sreg: R1 };
        let exprs = vec![network(12, 4), port, lookup(Some(R1), false, false), set_mark];
        output(&set, exprs, &input).mark
    };
    assert_eq!(mark([10, 0, 0, 1], 80), 1, "before the more specific one");
    assert_eq!(mark([10, 0, 0, 1], 69), 3);
    assert_eq!(mark([10, 0, 1, 0], 80), 3);
    assert_eq!(mark([192, 0, 2, 1], 22), 4);
    assert_eq!(mark([10, 0, 0, 1], 22), 3);
    assert_eq!((mark([11, 0, 0, 5], 256), mark([11, 0, 0, 9], 258)), (5, 5));
    assert_eq!((mark([11, 0, 0, 4], 256), mark([11, 0, 0, 9], 259)), (0, 0));
}

#[test]
fn verdict_maps_jump() {
    let to = |key: u8, verdict| Element {
        data: Some(Data::Verdict(verdict)),
        ..element(&[10, 0, 0, key])
    };
    let set = set(
        SET_MAP,
        4,
        vec![
            to(1, RuleVerdict::Jump("c".to_owned())),
            to(2, RuleVerdict::Continue),
            to(3, RuleVerdict::Jump("unknown".to_owned())),
            to(4, RuleVerdict::Accept),
        ],
    );
    let verdict = |last| {
        let mut input = tcp4();
        input.net[15] = last;
        let exprs = vec![network(12, 4), lookup(None, true, false), counter(), DROP];
        let output = output(&set, exprs, &input);
        (output.verdict, output.counters.len())
    };
    assert_eq!(verdict(1), (Verdict::Drop, 0));
    assert_eq!(verdict(2), (Verdict::Drop, 1));
    assert_eq!(verdict(3), (Verdict::Kernel, 0));
    assert_eq!(verdict(4), (Verdict::Accept, 0));
    assert_eq!(verdict(5), (Verdict::Accept, 0));
}

#[test]
fn large_sets_are_right() {
    let key = |n: u32| (0x0a00_0000 + n * 4).to_be_bytes();
    let exact = set(0, 4, (0..20_000).map(|n| element(&key(n))).collect());
    let both = |n: u32| [element(&key(2 * n)), end(&key(2 * n + 1))];
    let intervals = set(SET_INTERVAL, 4, (0..20_000).flat_map(both).collect());
    for n in (0..20_000).step_by(997) {
        assert!(has(&exact, key(n), 0) && !has(&exact, (0x0a00_0001 + n * 4).to_be_bytes(), 0));
        let (inside, outside) = (0x0a00_0003 + n * 8, 0x0a00_0004 + n * 8);
        assert!(has(&intervals, inside.to_be_bytes(), 0));
        assert!(!has(&intervals, outside.to_be_bytes(), 0));
    }
}

#[test]
fn odd_sets_are_left_to_the_kernel() {
    let good = set(0, 4, vec![element(&[10, 0, 0, 1])]);
    let odd = [
        Set { unsupported: Some("why".to_owned()), ..good.clone() },
        Set { flags: SET_EVAL, ..good.clone() },
        Set { flags: SET_OBJECT, ..good.clone() },
        Set { key_len: 0, ..good.clone() },
        Set { key_len: 65, ..good.clone() },
        Set { elements: vec![element(&[1])], ..good.clone() },
        Set { elements: vec![end(&[10, 0, 0, 1])], ..good.clone() },
        Set { data_len: 4, ..good.clone() },
        Set { flags: SET_INTERVAL, fields: vec![2, 0], ..good.clone() },
        Set { flags: SET_INTERVAL, fields: vec![4, 4], ..good.clone() },
    ];
    for set in odd {
        let exprs = vec![network(12, 4), lookup(None, false, false), DROP];
        assert_eq!(output(&set, exprs, &tcp4()).verdict, Verdict::Kernel, "{set:?}");
    }
    let exprs = vec![network(12, 4), lookup(Some(R2), false, false), DROP];
    assert_eq!(output(&good, exprs, &tcp4()).verdict, Verdict::Kernel);
}

/// A rule that drops packets whose source is the input's, found in a set of that element.
fn drops_source(element: Element) -> Ruleset {
    let exprs = vec![network(12, 4), lookup(None, false, false), DROP];
    let mut ruleset = forward(vec![rule(exprs)]);
    ruleset.tables[0].sets.push(set(0, 4, vec![element]));
    ruleset
}

#[test]
fn a_set_that_packets_change_is_the_kernels() {
    for (other, left) in [("dynset s", true), ("dynset", true), ("dynset others", false)] {
        let add = rule(vec![Expr::Other(other.into())]);
        let mut ruleset = drops_source(element(&tcp4().net[12..16]));
        // In a chain that packets in userspace do not reach.
        ruleset.tables[0].chains.push(regular("x", vec![add]));
        let verdict = run(&compile(&ruleset, 0), &tcp4()).verdict;
        assert_eq!(verdict == Verdict::Kernel, left, "{other}");
    }
}

#[test]
fn an_element_that_may_have_expired_is_the_kernels() {
    let short = Element { expires_ms: Some(1000), ..element(&tcp4().net[12..16]) };
    let program = compile_with_slack(&drops_source(short), 0, 100_000_000);
    let at = |ms: u64| {
        let mut input = tcp4();
        input.now_ns = ms * 1_000_000;
        run(&program, &input).verdict
    };
    let verdicts = [800, 950, 1050, 1200].map(at);
    let kernel = Verdict::Kernel;
    assert_eq!(verdicts, [Verdict::Drop, kernel, kernel, Verdict::Accept]);
}
