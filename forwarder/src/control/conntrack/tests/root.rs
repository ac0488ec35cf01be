//! The table that a kernel has, in network namespaces of the tests, with connections over `lo`.

use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use super::*;
use crate::control::netlink::test_netns::{self, nft, run};

/// Enough for all events of a test.
const RCVBUF_OCTETS: usize = 32 << 20;

/// Makes the kernel track connections, with zones, marks and a helper for some of them.
const RULESET: &str = r#"
table inet t {
    ct helper ftp { type "ftp" protocol tcp; }
    chain raw {
        type filter hook output priority raw;
        udp dport 7007 ct zone set 7
        udp dport 7008 ct original zone set 8
    }
    chain out {
        type filter hook output priority 0;
        udp dport 7009 ct mark set 0x12345678
        tcp dport 2121 ct helper set "ftp"
        ct state new accept
    }
}
"#;

/// Runs `test` in a new network namespace in which the kernel tracks connections.
fn in_netns(test: impl FnOnce(&mut NlSock) + Send + 'static) {
    test_netns::in_netns(move || {
        run("ip link set lo up");
        nft(RULESET);
        test(&mut NlSock::open(NETLINK_NETFILTER).expect("opens"));
    });
}

/// All entries.
fn table(socket: &mut NlSock) -> Vec<Entry> {
    let mut entries = Vec::new();
    let dumped = dump(socket, |entry| entries.push(entry)).expect("dumps");
    let expected = Dumped { entries: entries.len() as u64, skipped: 0, end: DumpEnd::Complete };
    assert_eq!(dumped, expected);
    entries
}

/// The only entry of a protocol.
fn only(socket: &mut NlSock, protocol: u8) -> Entry {
    let mut entries = table(socket);
    entries.retain(|entry| entry.original.protocol == protocol);
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries[0]
}

/// A TCP connection: client and server.
fn tcp(address: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(address).expect("listens");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
    let (server, _) = listener.accept().expect("accepts");
    (client, server)
}

/// Sends a UDP datagram, and another in the reply direction.
fn udp(address: &str, is_replied: bool) -> (UdpSocket, UdpSocket) {
    let server = UdpSocket::bind(address).expect("binds");
    let to = server.local_addr().expect("bound");
    let client = UdpSocket::bind((to.ip(), 0)).expect("binds");
    client.send_to(b"ping", to).expect("sends");
    let (_, from) = server.recv_from(&mut [0; 8]).expect("arrives");
    if is_replied {
        server.send_to(b"pong", from).expect("sends");
        client.recv_from(&mut [0; 8]).expect("arrives");
    }
    (client, server)
}

/// Makes entries of UDP without reply, to `count` addresses of 127.`net`.0.0/16; returns their tuples.
fn many(net: u8, count: u16) -> Vec<Tuple> {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
    let from = socket.local_addr().expect("bound");
    let send = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let to = Ipv4Addr::new(127, net, high, low);
        socket.send_to(b"x", (to, 9)).expect("sends");
        tuple(from.ip(), to.into(), UDP, [from.port(), 9])
    };
    (0..count).map(send).collect()
}

/// An entry as a line, without its timeout.
fn line(entry: &Entry) -> String {
    const STATES: [&str; 10] = [
        "NONE",
        "SYN_SENT",
        "SYN_RECV",
        "ESTABLISHED",
        "FIN_WAIT",
        "CLOSE_WAIT",
        "LAST_ACK",
        "TIME_WAIT",
        "CLOSE",
        "SYN_SENT2",
    ];
    let state = entry.tcp.map_or("-", |tcp| STATES[usize::from(tcp.state)]);
    let has = |bit: u32| entry.status & bit != 0;
    format!(
        "{:?} {:?} {state} replied {} assured {} mark {} zone {} helper {} id {}",
        entry.original,
        entry.reply,
        has(IPS_SEEN_REPLY),
        has(IPS_ASSURED),
        entry.mark,
        entry.zone,
        entry.has_helper,
        entry.id.expect("has one"),
    )
}

/// The same for a line of `conntrack -L -o extended,id`; and the timeout.
fn line_of_conntrack(text: &str) -> (String, u32) {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut values: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (key, value) in words.iter().filter_map(|word| word.split_once('=')) {
        values.entry(key).or_default().push(value);
    }
    let number = |key: &str, at: usize| -> u32 {
        let value = values.get(key).and_then(|values| values.get(at));
        value.map_or(0, |value| value.parse().expect("a number"))
    };
    let protocol: u8 = words[3].parse().expect("a protocol");
    let tuple_at = |at: usize| {
        let ports = match protocol {
            ICMP | ICMPV6 => [number("id", at), number("type", at) << 8 | number("code", at)],
            _ => [number("sport", at), number("dport", at)],
        };
        let address = |key: &str| values[key][at].parse().expect("an address");
        tuple(address("src"), address("dst"), protocol, ports.map(|port| port as u16))
    };
    let state = if protocol == TCP { words[5] } else { "-" };
    let zones = ["zone", "zone-orig", "zone-reply"].map(|key| number(key, 0));
    let line = format!(
        "{:?} {:?} {state} replied {} assured {} mark {} zone {} helper {} id {}",
        tuple_at(0),
        tuple_at(1),
        !words.contains(&"[UNREPLIED]"),
        words.contains(&"[ASSURED]"),
        number("mark", 0),
        zones.iter().max().expect("three"),
        values.contains_key("helper"),
        values["id"].last().expect("has one"),
    );
    (line, words[4].parse().expect("a timeout"))
}

/// The lines of `conntrack -L` for both families, with their timeouts.
fn conntrack() -> BTreeMap<String, u32> {
    let families = ["ipv4", "ipv6"]
        .map(|family| run(&format!("conntrack -L -f {family} -o extended,id 2>/dev/null")));
    families.iter().flat_map(|text| text.lines()).map(line_of_conntrack).collect()
}

/// Receives events until `is_complete`; returns all.
fn receive(events: &mut Events, is_complete: impl Fn(&[Event]) -> bool) -> Vec<Event> {
    let end = Instant::now() + Duration::from_secs(10);
    let mut found = Vec::new();
    while !is_complete(&found) {
        assert!(Instant::now() < end, "incomplete: {found:?}");
        let received = events.receive(Duration::from_millis(100), |event| found.push(event));
        assert_ne!(received.expect("receives"), Received::Overrun);
    }
    assert_eq!(events.skipped(), 0);
    found
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_dump_has_the_entries_that_conntrack_lists() {
    in_netns(|socket| {
        assert!(is_available(socket).expect("answers"));
        assert!(table(socket).is_empty());
        let _tcp = [tcp("127.0.0.1:0"), tcp("[::1]:0"), tcp("127.0.0.1:2121")];
        let closed = tcp("127.0.0.1:0");
        drop(closed.0);
        drop(closed.1);
        let _udp = [
            udp("127.0.0.1:0", false),
            udp("127.0.0.1:0", true),
            udp("[::1]:0", true),
            udp("127.0.0.1:7007", false),
            udp("127.0.0.1:7008", true),
            udp("[::1]:7009", false),
        ];
        run("ping -c 1 127.0.0.1 && ping -c 1 ::1");
        let entries = table(socket);
        let lines: BTreeMap<String, Option<u32>> =
            entries.iter().map(|entry| (line(entry), entry.timeout_s)).collect();
        let expected = conntrack();
        assert_eq!(lines.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        assert_eq!(lines.len(), 4 + 6 + 2);
        for (line, timeout_s) in &lines {
            let timeout_s = timeout_s.expect("has one");
            assert!(timeout_s.abs_diff(expected[line]) <= 2, "{line}: {timeout_s}");
        }
        let zones: HashSet<u16> = entries.iter().map(|entry| entry.zone).collect();
        assert_eq!(zones, HashSet::from([0, 7, 8]));
        assert_eq!(entries.iter().filter(|entry| entry.mark == 0x1234_5678).count(), 1);
        assert_eq!(entries.iter().filter(|entry| entry.has_helper).count(), 1);
        assert!(entries.iter().all(|entry| entry.status & IPS_CONFIRMED != 0));
        assert!(
            entries.iter().all(|entry| entry.tcp.is_some() == (entry.original.protocol == TCP))
        );
        let sysctls = Sysctls::read().expect("has them");
        assert_eq!(sysctls.count as usize, entries.len());
        assert!(sysctls.udp_timeout_stream_s > 0 && sysctls.tcp_timeout_established_s > 0);
    });
}

/// With zones, marks, counters and a helper, character by character.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_listing_is_that_of_conntrack() {
    in_netns(|socket| {
        run("sysctl -w net.netfilter.nf_conntrack_acct=1");
        let _tcp = [tcp("127.0.0.1:0"), tcp("[::1]:0"), tcp("127.0.0.1:2121")];
        let _udp = [
            udp("127.0.0.1:0", false),
            udp("127.0.0.1:7007", false),
            udp("127.0.0.1:7008", true),
            udp("127.0.0.1:7009", true),
        ];
        run("ping -c 1 127.0.0.1");
        let style = Style { extended: true, id: true };
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let mut are_equal = || {
            ours.clear();
            let each = |listed: Listed| {
                ours.push(Line { listed: &listed, style, carried: None }.to_string());
            };
            list(socket, libc::AF_UNSPEC as u8, each).expect("lists");
            let text = run("conntrack -L -o extended,id 2>/dev/null");
            theirs = text.lines().map(str::to_owned).collect();
            [&mut ours, &mut theirs].into_iter().for_each(|lines| lines.sort());
            ours == theirs
        };
        // The time-outs count down.
        let is_equal = (0..50).any(|_| are_equal());
        assert!(is_equal && ours.len() == 8, "{ours:#?}\nconntrack:\n{theirs:#?}");
        for part in ["zone=7", "zone-orig=8", "mark=305419896", "helper=ftp", "packets=", "type=8"]
        {
            assert!(ours.iter().any(|line| line.contains(part)), "no {part}: {ours:#?}");
        }
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_settings_are_those_of_the_namespace() {
    in_netns(|_| {
        run("sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established=1234 \
             net.netfilter.nf_conntrack_udp_timeout_stream=77 net.netfilter.nf_conntrack_acct=1");
        let sysctls = Sysctls::read().expect("has them");
        assert_eq!((sysctls.tcp_timeout_established_s, sysctls.udp_timeout_stream_s), (1234, 77));
        assert!(sysctls.is_acct && sysctls.count == 0);
        run("sysctl -w net.netfilter.nf_conntrack_events=1");
        assert_eq!(Sysctls::read().expect("has them").events, 1);
        run("sysctl -w net.netfilter.nf_conntrack_acct=0");
        assert!(!Sysctls::read().expect("has them").is_acct);
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_connection_has_events_from_its_first_packet_to_its_removal() {
    in_netns(|socket| {
        let mut events = Events::open(RCVBUF_OCTETS).expect("opens");
        let before = Instant::now();
        let received = events.receive(Duration::from_millis(60), |event| panic!("{event:?}"));
        assert_eq!(received.expect("receives"), Received::Drained);
        let took = before.elapsed();
        assert!(took >= Duration::from_millis(60) && took < Duration::from_secs(5), "{took:?}");

        let (client, server) = tcp("127.0.0.1:0");
        let is_established = |event: &Event| {
            matches!(event, Event::Update(entry) if entry.status & IPS_ASSURED != 0
                && entry.tcp.is_some_and(|tcp| tcp.state == TCP_CONNTRACK_ESTABLISHED))
        };
        let opened = receive(&mut events, |found| found.iter().any(is_established));
        let listed = only(socket, TCP);
        let Event::New(new) = opened[0] else { panic!("{opened:?}") };
        assert_eq!((new.original, new.reply, new.id), (listed.original, listed.reply, listed.id));
        assert_eq!(new.original.source_port, client.local_addr().expect("bound").port());
        assert!(opened[1..].iter().all(|event| matches!(event, Event::Update(_))), "{opened:?}");

        drop(client);
        drop(server);
        let is_closed = |event: &Event| {
            matches!(event, Event::Update(Entry { tcp: Some(tcp), .. })
                if tcp.state == TCP_CONNTRACK_TIME_WAIT)
        };
        receive(&mut events, |found| found.iter().any(is_closed));
        run("conntrack -D -p tcp 2>/dev/null");
        let removed = receive(&mut events, |found| !found.is_empty());
        let [Event::Destroy(gone)] = removed[..] else { panic!("{removed:?}") };
        assert_eq!(
            (gone.original, gone.reply, gone.id),
            (listed.original, listed.reply, listed.id)
        );
        assert!(gone.status & IPS_DYING != 0);
        assert!(table(socket).is_empty());
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_entries_from_before_the_subscription_have_events_if_the_kernel_always_prepares_them() {
    in_netns(|socket| {
        run("sysctl -w net.netfilter.nf_conntrack_events=1");
        let _udp = udp("127.0.0.1:0", false);
        let listed = only(socket, UDP);
        let mut events = Events::open(RCVBUF_OCTETS).expect("opens");
        run("conntrack -D -p udp 2>/dev/null");
        let removed = receive(&mut events, |found| !found.is_empty());
        assert!(matches!(removed[..], [Event::Destroy(gone)] if gone.id == listed.id));
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_an_update_sets_timeout_status_and_flags() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        in_netns(move |socket| {
            let (_tcp, _udp) = (tcp(address), udp(address, false));
            let (tcp, udp) = (only(socket, TCP), only(socket, UDP));
            let is_liberal = |flags: u8| flags & IP_CT_TCP_FLAG_BE_LIBERAL != 0;
            let of = |entry: Entry| entry.tcp.expect("a TCP connection");
            assert!(!is_liberal(of(tcp).flags_original) && !is_liberal(of(tcp).flags_reply));
            assert!(udp.status & (IPS_ASSURED | IPS_SEEN_REPLY) == 0);
            let mut events = Events::open(RCVBUF_OCTETS).expect("opens");
            let change = |entry: &Entry| Change {
                tuple: entry.original,
                timeout_s: Some(5000),
                is_assured: true,
                is_expected: false,
                is_liberal: Some(true),
                forgets_max_ack: true,
            };
            let answers = update(socket, &[change(&tcp), change(&udp)]);
            assert!(answers.iter().all(Result::is_ok), "{answers:?}");

            let (tcp_after, udp_after) = (only(socket, TCP), only(socket, UDP));
            let changed =
                |flags: u8| (flags | IP_CT_TCP_FLAG_BE_LIBERAL) & !IP_CT_TCP_FLAG_MAXACK_SET;
            assert!(of(tcp).flags_reply & IP_CT_TCP_FLAG_MAXACK_SET != 0);
            let liberal = TcpInfo {
                flags_original: changed(of(tcp).flags_original),
                flags_reply: changed(of(tcp).flags_reply),
                ..of(tcp)
            };
            assert_eq!(
                tcp_after,
                Entry { timeout_s: tcp_after.timeout_s, tcp: Some(liberal), ..tcp }
            );
            let status = udp.status | IPS_ASSURED | IPS_SEEN_REPLY;
            assert_eq!(udp_after, Entry { timeout_s: udp_after.timeout_s, status, ..udp });
            for timeout_s in conntrack().into_values() {
                assert!((4990..=5000).contains(&timeout_s), "{timeout_s}");
            }
            events
                .receive(Duration::ZERO, |event| assert!(matches!(event, Event::Update(_))))
                .expect("receives");

            // Without a part, it stays; and a wrong status is refused.
            let nothing =
                Change { timeout_s: None, is_assured: false, is_liberal: None, ..change(&tcp) };
            let wrong = Change { is_assured: true, is_expected: true, ..nothing };
            let answers = update(socket, &[nothing, wrong]);
            assert!(answers[0].is_ok());
            let errno = answers[1].as_ref().expect_err("is not expected").raw_os_error();
            assert_eq!(errno, Some(libc::EBUSY));
            let last = only(socket, TCP);
            assert_eq!(last, Entry { timeout_s: last.timeout_s, ..tcp_after });
        });
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_an_update_of_an_entry_that_is_gone_adds_none() {
    in_netns(|socket| {
        let (_tcp, _udp) = (tcp("127.0.0.1:0"), udp("127.0.0.1:0", true));
        run("ping -c 1 127.0.0.1 && ping -c 1 ::1");
        let entries = table(socket);
        let gone = only(socket, TCP);
        run("conntrack -D -p tcp 2>/dev/null");
        // More than one datagram has.
        let changes: Vec<Change> = (0..50)
            .flat_map(|_| &entries)
            .map(|entry| Change {
                tuple: entry.original,
                timeout_s: Some(900),
                is_assured: true,
                is_expected: false,
                is_liberal: Some(true),
                forgets_max_ack: true,
            })
            .collect();
        let answers = update(socket, &changes);
        assert_eq!(answers.len(), changes.len());
        for (change, answer) in changes.iter().zip(answers) {
            let errno = answer.err().and_then(|error| error.raw_os_error());
            let is_gone = change.tuple == gone.original;
            assert_eq!(errno, is_gone.then_some(libc::ENOENT), "{change:?}");
        }
        let ids = |entries: &[Entry]| -> HashSet<Option<u32>> {
            entries.iter().map(|entry| entry.id).filter(|id| *id != gone.id).collect()
        };
        let after = table(socket);
        assert_eq!((after.len(), ids(&after)), (entries.len() - 1, ids(&entries)));
        assert!(after.iter().all(|entry| entry.timeout_s.is_some_and(|left| left > 890)));
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_socket_of_another_protocol_fails_each_update() {
    in_netns(|_| {
        let mut other = NlSock::open(NETLINK_ROUTE).expect("opens");
        let change = Change {
            tuple: tuple(v4(1), v4(2), UDP, [1, 2]),
            timeout_s: Some(1),
            is_assured: false,
            is_expected: false,
            is_liberal: None,
            forgets_max_ack: false,
        };
        let answers = update(&mut other, &[change; 3]);
        assert!(answers.len() == 3 && answers.iter().all(Result::is_err), "{answers:?}");
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_thousands_of_entries_are_dumped_once_and_have_an_event_each() {
    in_netns(|socket| {
        let mut events = Events::open(RCVBUF_OCTETS).expect("opens");
        let sent: HashSet<Tuple> = many(1, 5000).into_iter().collect();
        let entries = table(socket);
        let of_udp = |entry: &&Entry| entry.original.protocol == UDP;
        let listed: HashSet<Tuple> =
            entries.iter().filter(of_udp).map(|entry| entry.original).collect();
        assert!(sent.len() == 5000 && listed == sent);
        assert_eq!(entries.iter().filter(of_udp).count(), sent.len());
        let mut new = HashSet::new();
        let mut is_first = true;
        loop {
            let received = events.receive(Duration::from_millis(100), |event| {
                if let Event::New(entry) = event {
                    new.insert(entry.original);
                }
            });
            match received.expect("receives") {
                Received::Drained => break,
                // One call is limited.
                received => assert_eq!(received, Received::More),
            }
            is_first = false;
        }
        assert!(!is_first && new.is_superset(&listed));
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_entries_that_stay_are_dumped_while_others_come_and_go() {
    in_netns(|socket| {
        run("sysctl -w net.netfilter.nf_conntrack_udp_timeout=600");
        let staying = many(1, 5000);
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut socket = NlSock::open(NETLINK_NETFILTER).expect("opens");
                let end = Instant::now() + Duration::from_secs(30);
                while !is_done.load(Relaxed) && Instant::now() < end {
                    let remove = |tuple| Change {
                        tuple,
                        timeout_s: Some(0),
                        is_assured: false,
                        is_expected: false,
                        is_liberal: None,
                        forgets_max_ack: false,
                    };
                    // Some may have been removed by the dump.
                    let changes: Vec<Change> = many(2, 500).into_iter().map(remove).collect();
                    let removed = update(&mut socket, &changes);
                    assert!(removed.iter().any(Result::is_ok), "{removed:?}");
                }
            });
            for _ in 0..30 {
                let listed: HashSet<Tuple> =
                    table(socket).into_iter().map(|entry| entry.original).collect();
                let missing = staying.iter().filter(|tuple| !listed.contains(tuple)).count();
                is_done.store(missing > 0, Relaxed);
                assert_eq!(missing, 0);
            }
            is_done.store(true, Relaxed);
        });
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_lost_events_are_an_overrun_and_later_ones_arrive() {
    in_netns(|_| {
        let mut events = Events::open(1).expect("opens");
        many(1, 3000);
        let (mut found, mut overruns) = (0, 0);
        loop {
            match events.receive(Duration::from_millis(100), |_| found += 1).expect("receives") {
                Received::Drained => break,
                Received::Overrun => overruns += 1,
                Received::More => {}
            }
        }
        assert!(overruns >= 1 && found < 3000, "{overruns} overruns, {found} events");
        let _udp = udp("127.0.0.1:0", false);
        let later = receive(&mut events, |found| !found.is_empty());
        assert!(matches!(later[..], [Event::New(_)]), "{later:?}");
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_an_update_shows_which_entries_have_events() {
    in_netns(|socket| {
        run("sysctl -w net.netfilter.nf_conntrack_events=0");
        let before = many(1, 100);
        run("sysctl -w net.netfilter.nf_conntrack_events=1");
        let after = many(2, 100);
        let gone = many(3, 100).into_iter().map(|tuple| Tuple { source_port: 9, ..tuple });
        let tuples = before.iter().zip(&after).zip(gone);
        let change = |tuple: Tuple| Change {
            tuple,
            timeout_s: Some(1000),
            is_assured: false,
            is_expected: false,
            is_liberal: None,
            forgets_max_ack: false,
        };
        let changes: Vec<Change> = tuples
            .flat_map(|((before, after), gone)| [*before, gone, *after])
            .map(change)
            .collect();
        let results = update_and_read(socket, &changes);
        assert_eq!(results.len(), changes.len());
        for (changes, results) in changes.chunks(3).zip(results.chunks(3)) {
            let [before, gone, after] = results else { panic!("three of each") };
            assert!(matches!(before, Ok(None)), "{before:?}");
            let errno = gone.as_ref().expect_err("is not there").raw_os_error();
            assert_eq!(errno, Some(libc::ENOENT));
            let entry = after.as_ref().expect("is there").expect("has events");
            assert_eq!(entry.original, changes[2].tuple);
            assert!(entry.timeout_s.is_some_and(|seconds| seconds > 990), "{entry:?}");
        }
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_own_changes_and_entries_that_are_not_assured_are_left_out() {
    in_netns(|socket| {
        let mut events = Events::open(RCVBUF_OCTETS).expect("opens");
        let mut other = NlSock::open(NETLINK_NETFILTER).expect("opens");
        let own = [&*socket, &other].map(own_number);
        events.leave_out(own, Unassured::Ipsec).expect("is set");
        let (_client, _server) = tcp("127.0.0.1:0");
        let _sockets = udp("127.0.0.1:0", true);
        let is_complete = |events: &[Event]| !events.is_empty();
        let received = receive(&mut events, is_complete);
        let [Event::Update(entry)] = received.as_slice() else { panic!("{received:?}") };
        assert!(entry.status & IPS_ASSURED != 0 && entry.original.protocol == 6, "{entry:?}");
        let change = |timeout_s| Change {
            tuple: entry.original,
            timeout_s: Some(timeout_s),
            is_assured: false,
            is_expected: false,
            is_liberal: None,
            forgets_max_ack: false,
        };
        for socket in [&mut *socket, &mut other] {
            assert!(update(socket, &[change(500)])[0].is_ok());
        }
        // Closing: of the states only FIN_WAIT.
        drop(tcp("127.0.0.1:0"));
        let received = receive(&mut events, |events| events.len() >= 2);
        let states = received.iter().map(|event| match event {
            Event::Update(entry) => entry.tcp.map(|tcp| tcp.state),
            other => panic!("{other:?}"),
        });
        let states: Vec<Option<u8>> = states.collect();
        let expected = [TCP_CONNTRACK_ESTABLISHED, TCP_CONNTRACK_FIN_WAIT].map(Some);
        assert_eq!(states, expected, "{received:?}");
        let mut other = NlSock::open(NETLINK_NETFILTER).expect("opens");
        assert!(update(&mut other, &[change(900)])[0].is_ok());
        let received = receive(&mut events, is_complete);
        let [Event::Update(entry)] = received.as_slice() else { panic!("{received:?}") };
        assert!(entry.timeout_s.is_some_and(|seconds| seconds > 800), "{entry:?}");
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_events_of_echo_are_received_if_that_is_wanted() {
    in_netns(|socket| {
        for (unassured, expected) in
            [(Unassured::All, 1), (Unassured::Tunnels, 0), (Unassured::Ipsec, 0)]
        {
            let mut events = Events::open_changes(RCVBUF_OCTETS).expect("opens");
            events.leave_out([own_number(socket); 2], unassured).expect("is set");
            run("ping -q -c 1 127.0.0.1 > /dev/null");
            let echo: Vec<Entry> = table(socket);
            let replied = echo
                .iter()
                .find(|it| it.original.protocol == ICMP && it.status & IPS_SEEN_REPLY != 0);
            let replied = replied.expect("an entry").original;
            assert_eq!(
                read(socket, &replied).expect("an answer").map(|it| it.original),
                Some(replied)
            );
            // After these.
            let _connection = tcp("127.0.0.1:0");
            let is_tcp = |event: &Event| matches!(event, Event::Update(it) if it.tcp.is_some());
            let received = receive(&mut events, |events| events.iter().any(is_tcp));
            let of_echo = received
                .iter()
                .filter(|event| matches!(event, Event::Update(it) if it.original.protocol == ICMP));
            assert_eq!(of_echo.count(), expected, "{unassured:?}: {received:?}");
        }
    });
}

/// An entry of conntrackd has an extension for SYNPROXY, with zeros.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_an_entry_that_another_program_added_is_not_taken_for_one_of_synproxy() {
    in_netns(|socket| {
        run("conntrack -I -p tcp -s 192.0.2.1 -d 192.0.2.2 --sport 1 --dport 2 -t 900 \
             --state ESTABLISHED -u ASSURED,SEEN_REPLY");
        let entry = only(socket, 6);
        assert!(!entry.has_synproxy && entry.status & IPS_ASSURED != 0, "{entry:?}");
    });
}
