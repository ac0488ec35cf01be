//! Rulesets as tools write them, and as routers of several kinds have them: `tests/rulesets`.
//!
//! Whether single rules are evaluated as the kernel does is left out; the oracle compares that.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::conversation::{Conversation, are_carried, nft};
use ferroute_tests::lab::addr::{LEFT4, LEFT6, RIGHT4, RIGHT6, RT_LEFT4, RT_RIGHT4, RT_RIGHT6};
use ferroute_tests::lab::repository;
use ferroute_tests::ping::ping_all;
use ferroute_tests::{Ferroute, Lab, Netns, eventually, ferroute};

/// A second address of the left host: the server behind forwarded ports.
const SERVER4: &str = "198.18.1.9";
const SERVER6: &str = "2001:db8:1::9";
/// How long a connection is tried that the ruleset forbids, and one that it allows.
const FORBIDDEN: Duration = Duration::from_millis(400);
const ALLOWED: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
enum Side {
    Left,
    Right,
}
use Side::{Left, Right};

fn host(lab: &Lab, side: Side) -> &Netns {
    match side {
        Left => &lab.left,
        Right => &lab.right,
    }
}

/// Who connects, to which address and port, and which server is there.
struct Path {
    client: Side,
    to: (&'static str, u16),
    server: Side,
    at: (&'static str, u16),
}

impl Path {
    /// Without translation of the destination.
    const fn direct(client: Side, server: Side, at: (&'static str, u16)) -> Path {
        Path { client, to: at, server, at }
    }
}

struct Case {
    /// The program that loads a ruleset, and the file.
    load: &'static [(&'static str, &'static str)],
    /// Connections of TCP and UDP that the ruleset allows, and the client's address as the server sees it.
    allowed: &'static [(Path, &'static str)],
    /// Connections that it forbids, of TCP and UDP.
    forbidden: &'static [Path],
    pings: &'static [(Side, &'static str)],
}

fn socket(at: (&str, u16)) -> Result<SocketAddr> {
    Ok(SocketAddr::new(at.0.parse()?, at.1))
}

/// Loads a file of `tests/rulesets`, without helpers of connections if the kernel lacks them.
fn load(router: &Netns, program: &str, file: &str) -> Result<()> {
    let path = repository().join("tests/rulesets").join(file);
    if program == "nft" {
        let text = fs::read_to_string(&path).with_context(|| format!("reading {file}"))?;
        return nft(router, &text).or_else(|error| {
            eprintln!("{file} is loaded without helpers: {error:#}");
            nft(router, &without_helpers(&text))
        });
    }
    let output = router.command(program).arg(&path).output()?;
    ensure!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// OpenWrt's ruleset, without the helper of connections.
pub fn fw4() -> Result<String> {
    let path = repository().join("tests/rulesets/openwrt-fw4.nft");
    Ok(without_helpers(&fs::read_to_string(path)?))
}

fn without_helpers(ruleset: &str) -> String {
    let mut is_inside = false;
    let kept = ruleset.lines().filter(|line| {
        let line = line.trim();
        is_inside |= line.starts_with("ct helper ") && line.ends_with('{');
        let is_kept = !is_inside && !line.contains("ct helper set");
        is_inside &= line != "}";
        is_kept
    });
    kept.map(|line| line.to_owned() + "\n").collect()
}

/// A lab whose left host has the addresses of the server behind forwarded ports.
fn lab() -> Result<Lab> {
    let lab = Lab::up()?;
    lab.left.run(&format!("ip addr add {SERVER4}/24 dev left"))?;
    lab.left.run(&format!("ip addr add {SERVER6}/64 dev left nodad preferred_lft 0"))?;
    // Redirects for packets that return to their link are the kernel's.
    for name in ["all", "rt-left"] {
        lab.router.sysctl(&format!("net/ipv4/conf/{name}/send_redirects"), "0")?;
    }
    Ok(lab)
}

/// The lines of `conntrack -L` about the conversations, without what changes.
fn entries(router: &Netns, all: &[&Conversation]) -> Result<Vec<String>> {
    let listed = router.run("conntrack -L -f ipv4")? + &router.run("conntrack -L -f ipv6")?;
    // Answers are sent to the address and port that the server sees.
    let ends: Vec<[String; 2]> = (all.iter().map(|it| it.peer))
        .map(|peer| [format!("dst={}", peer.ip()), format!("dport={}", peer.port())])
        .collect();
    let has = |line: &str, field: &String| line.split_whitespace().any(|it| it == field);
    let is_ours = |line: &&str| ends.iter().any(|end| end.iter().all(|field| has(line, field)));
    let ours = listed.lines().filter(is_ours);
    let mut lines: Vec<String> = ours
        .map(|line| {
            let fields = line.split_whitespace().enumerate();
            // The third field is the time-out.
            let lasting = fields.filter(|(at, field)| *at != 2 && !field.starts_with("use="));
            lasting.map(|(_, field)| field).collect::<Vec<_>>().join(" ")
        })
        .collect();
    lines.sort();
    Ok(lines)
}

/// Whether a new connection passes within this time.
fn passes(lab: &Lab, path: &Path, is_tcp: bool, within: Duration) -> Result<bool> {
    let (client, server) = (host(lab, path.client), host(lab, path.server));
    let (to, at) = (socket(path.to)?, socket(path.at)?);
    if is_tcp {
        let _listener = server.enter(|| Ok(TcpListener::bind(at)?))?;
        return client.enter(|| Ok(TcpStream::connect_timeout(&to, within).is_ok()));
    }
    let server = server.enter(|| Ok(UdpSocket::bind(at)?))?;
    server.set_read_timeout(Some(within))?;
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    client.enter(|| {
        UdpSocket::bind((any, 0))?.send_to(&[7; 32], to)?;
        Ok(())
    })?;
    Ok(server.recv_from(&mut [0; 64]).is_ok())
}

fn none_passes(lab: &Lab, forbidden: &[Path], protocols: &[bool]) -> Result<()> {
    for path in forbidden {
        for is_tcp in protocols {
            let passed = passes(lab, path, *is_tcp, FORBIDDEN)?;
            ensure!(!passed, "TCP {is_tcp} from {:?} to {:?} passes", path.client, path.to);
        }
    }
    Ok(())
}

/// Whether `status` reports this number of carried connections. On a busy machine Ferroute may report for a moment
/// that it does not forward, which is printed.
pub fn carries(running: &Ferroute, count: usize) -> bool {
    match running.json(&["status"]) {
        Ok(status) => status["carried_flows"] == count,
        Err(error) => {
            eprintln!("{error:#}");
            false
        }
    }
}

/// Opens the connections that a ruleset allows, and verifies that they are carried, also after kills, and that
/// conntrack lists them as before. `extra` is run while they are carried for the first time.
fn follow(lab: &Lab, case: &Case, extra: impl Fn(&Lab) -> Result<()>) -> Result<()> {
    for (program, file) in case.load {
        load(&lab.router, program, file)?;
    }
    let mut running = Ferroute::start(lab)?;
    none_passes(lab, case.forbidden, &[true, false])?;
    let mut talks = Vec::new();
    for (path, seen) in case.allowed {
        for is_tcp in [true, false] {
            let (client, server) = (host(lab, path.client), host(lab, path.server));
            let talk = Conversation::between(
                client,
                socket(path.to)?,
                server,
                socket(path.at)?,
                is_tcp,
            )
            .with_context(|| format!("TCP {is_tcp} from {:?} to {:?}", path.client, path.to))?;
            ensure!(talk.peer.ip() == seen.parse::<IpAddr>()?, "the server sees {}", talk.peer);
            talks.push(talk);
        }
    }
    for (from, to) in case.pings {
        ping_all(host(lab, *from), &format!("-c 2 -i 0.1 -W 5 {to}"))?;
    }
    let all: Vec<&Conversation> = talks.iter().collect();
    let mut first = Vec::new();
    for round in 0..3 {
        ensure!(are_carried(&running, &all), "{round}: the kernel forwards: {}", running.account());
        let is_settled = |line: &String| {
            line.contains("[ASSURED]") && (line.starts_with("udp") || line.contains("ESTABLISHED"))
        };
        let are_settled = || {
            entries(&lab.router, &all)
                .is_ok_and(|listed| listed.len() == all.len() && listed.iter().all(is_settled))
        };
        ensure!(eventually(are_settled), "{round}: {:#?}", entries(&lab.router, &all)?);
        let listed = entries(&lab.router, &all)?;
        if round == 0 {
            first = listed;
            extra(lab)?;
        } else {
            ensure!(listed == first, "{round}: {listed:#?}\nbefore: {first:#?}");
        }
        // Of UDP the address may be in use.
        none_passes(lab, &case.forbidden[..1], &[true])?;
        if ferroute::by_kernel() || round == 2 {
            return Ok(());
        }
        ensure!(eventually(|| carries(&running, all.len())), "{round}: {}", running.account());
        running.kill()?;
        ensure!(all.iter().all(|it| it.goes_on()), "{round}: a connection died");
        ensure!(
            entries(&lab.router, &all)? == first,
            "{round}: {:#?}",
            entries(&lab.router, &all)?
        );
        running = Ferroute::start(lab)?;
    }
    Ok(())
}

const OPENWRT: Case = Case {
    load: &[("nft", "openwrt-fw4.nft")],
    allowed: &[
        (Path::direct(Left, Right, (RIGHT4, 5001)), RT_RIGHT4),
        (Path::direct(Left, Right, (RIGHT6, 5001)), LEFT6),
        (Path::direct(Right, Left, (LEFT6, 5001)), RIGHT6),
        // Forwarded ports, from outside and from inside.
        (Path { client: Right, to: (RT_RIGHT4, 8080), server: Left, at: (SERVER4, 5001) }, RIGHT4),
        (Path { client: Right, to: (RT_RIGHT6, 8080), server: Left, at: (SERVER6, 5001) }, RIGHT6),
        (Path { client: Left, to: (RT_RIGHT4, 8081), server: Left, at: (SERVER4, 5002) }, RT_LEFT4),
        // Not of IPv6: once a second a packet that returns to its link needs a redirect, which is the kernel's.
    ],
    forbidden: &[
        Path::direct(Right, Left, (LEFT4, 5001)),
        Path::direct(Right, Left, (LEFT6, 5003)),
        Path { client: Right, to: (RT_RIGHT4, 8082), server: Left, at: (SERVER4, 5001) },
    ],
    pings: &[(Left, RIGHT4), (Left, RIGHT6), (Right, LEFT6)],
};

/// The link to the right takes smaller packets than the hosts know: without `maxseg size set rt mtu` their segments
/// would have 1448 octets.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_home_router_of_openwrt_carries_what_it_allows() -> Result<()> {
    let lab = lab()?;
    lab.router.run("ip link set rt-right mtu 1400")?;
    follow(&lab, &OPENWRT, |lab| {
        let sockets = lab.right.run(&format!("ss -Htni src {RIGHT4}:5001"))?;
        // 1400 without the headers of IPv4 and TCP, and time stamps.
        ensure!(sockets.contains(" mss:1348 "), "the MSS was not clamped: {sockets}");
        Ok(())
    })
}

const EDGE: Case = Case {
    // The test loads it.
    load: &[],
    allowed: &[
        (Path::direct(Right, Left, (LEFT4, 5001)), RIGHT4),
        (Path::direct(Right, Left, (LEFT6, 5001)), RIGHT6),
        (Path::direct(Left, Right, (RIGHT4, 5001)), LEFT4),
        (Path::direct(Left, Right, (RIGHT6, 5001)), LEFT6),
    ],
    forbidden: &[
        Path::direct(Right, Left, (LEFT4, 5003)),
        Path::direct(Right, Left, (LEFT6, 5003)),
        Path::direct(Right, Left, (SERVER4, 5001)),
    ],
    pings: &[(Left, RIGHT4), (Left, RIGHT6), (Right, LEFT4), (Right, LEFT6)],
};

const BLOCKED4: &str = "203.0.113.9";

/// Whether a datagram from this address of the right host reaches a service within this time.
fn datagram_passes(lab: &Lab, from: &str, within: Duration) -> Result<bool> {
    let service = socket((SERVER4, 53))?;
    let server = lab.left.enter(|| Ok(UdpSocket::bind(service)?))?;
    server.set_read_timeout(Some(within))?;
    let client = socket((from, 0))?;
    lab.right.enter(|| Ok(UdpSocket::bind(client)?.send_to(&[7; 32], service)?))?;
    Ok(server.recv_from(&mut [0; 64]).is_ok())
}

/// The block list has 40,000 prefixes. While connections are carried, the elements of a set with a time-out change.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_edge_with_a_large_block_list_carries_what_it_allows() -> Result<()> {
    let lab = lab()?;
    for address in [BLOCKED4, "203.0.113.33"] {
        lab.right.run(&format!("ip addr add {address}/32 dev right"))?;
    }
    lab.router.run("ip route add 203.0.113.0/24 dev rt-right")?;
    load(&lab.router, "nft", "edge.nft")?;
    let prefixes4 = (0..30_000u32).map(|n| format!("{}/30", Ipv4Addr::from(0x0b00_0000 + n * 8)));
    let prefixes6 = (0..10_000).map(|n| format!("2400:{n:x}::/32"));
    for (set, all, one) in [
        ("blocked4", prefixes4.collect::<Vec<_>>(), "203.0.113.0/28"),
        ("blocked6", prefixes6.collect(), "2001:db8:77::/48"),
    ] {
        nft(&lab.router, &format!("add element inet edge {set} {{ {}, {one} }}", all.join(", ")))?;
    }
    follow(&lab, &EDGE, |lab| {
        let operator = Path::direct(Right, Left, (LEFT4, 5002));
        let is_admitted = |within| passes(lab, &operator, true, within);
        ensure!(is_admitted(ALLOWED)?, "an operator is refused");
        lab.router.run("nft delete element inet edge operators4 { 198.18.2.2 }")?;
        ensure!(!is_admitted(FORBIDDEN)?, "the element is deleted");
        lab.router.run("nft add element inet edge operators4 { 198.18.2.2 timeout 2s }")?;
        ensure!(is_admitted(ALLOWED)?, "an operator is refused");
        let is_over = eventually(|| is_admitted(FORBIDDEN).is_ok_and(|it| !it));
        ensure!(is_over, "the element remains after its time");
        let free = datagram_passes(lab, "203.0.113.33", ALLOWED)?;
        ensure!(free, "a host that is not blocked is refused");
        ensure!(!datagram_passes(lab, BLOCKED4, FORBIDDEN)?, "a blocked host passes");
        Ok(())
    })
}

const DOCKER_ALLOWED: &[(Path, &str)] = &[
    // The published port, and the container's own connections.
    (Path { client: Left, to: (RT_LEFT4, 8080), server: Right, at: (RIGHT4, 5001) }, LEFT4),
    (Path::direct(Right, Left, (LEFT4, 5001)), RT_LEFT4),
];

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_host_with_docker_27_carries_what_it_allows() -> Result<()> {
    const CASE: Case = Case {
        load: &[("iptables-nft-restore", "docker-27.rules")],
        allowed: DOCKER_ALLOWED,
        forbidden: &[
            Path { client: Left, to: (RT_LEFT4, 8081), server: Right, at: (RIGHT4, 5001) },
            Path::direct(Left, Right, (RIGHT4, 5002)),
        ],
        pings: &[(Right, LEFT4)],
    };
    follow(&lab()?, &CASE, |_| Ok(()))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_host_with_docker_29_carries_what_it_allows() -> Result<()> {
    const CASE: Case = Case {
        load: &[("iptables-nft-restore", "docker-29.rules")],
        allowed: DOCKER_ALLOWED,
        forbidden: &[
            // Also the published port, if it is addressed past the translation.
            Path::direct(Left, Right, (RIGHT4, 5001)),
            Path { client: Left, to: (RT_LEFT4, 8081), server: Right, at: (RIGHT4, 5001) },
        ],
        pings: &[(Right, LEFT4)],
    };
    follow(&lab()?, &CASE, |_| Ok(()))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn rules_of_firewalld_carry_what_they_allow() -> Result<()> {
    const CASE: Case = Case {
        load: &[("nft", "firewalld-1.3.3.nft")],
        allowed: &[
            (Path::direct(Left, Right, (RIGHT4, 5001)), RT_RIGHT4),
            (Path::direct(Left, Right, (RIGHT6, 5001)), LEFT6),
            (
                Path { client: Right, to: (RT_RIGHT4, 8080), server: Left, at: (LEFT4, 5001) },
                RIGHT4,
            ),
        ],
        forbidden: &[
            Path::direct(Right, Left, (LEFT4, 5002)),
            Path::direct(Right, Left, (LEFT6, 5001)),
            Path { client: Right, to: (RT_RIGHT4, 8081), server: Left, at: (LEFT4, 5001) },
        ],
        pings: &[(Left, RIGHT4), (Left, RIGHT6)],
    };
    follow(&lab()?, &CASE, |_| Ok(()))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn rules_of_ufw_carry_what_they_allow() -> Result<()> {
    const CASE: Case = Case {
        load: &[
            ("iptables-nft-restore", "ufw-0.36.2-ip4.rules"),
            ("ip6tables-nft-restore", "ufw-0.36.2-ip6.rules"),
        ],
        allowed: &[
            (Path::direct(Left, Right, (RIGHT4, 5001)), RT_RIGHT4),
            (Path::direct(Left, Right, (RIGHT6, 5001)), LEFT6),
        ],
        forbidden: &[
            Path::direct(Right, Left, (LEFT6, 5001)),
            Path::direct(Right, Left, (LEFT4, 5002)),
        ],
        pings: &[(Left, RIGHT4), (Left, RIGHT6), (Right, LEFT4)],
    };
    follow(&lab()?, &CASE, |lab| {
        let service = Path::direct(Right, Left, (LEFT4, 5001));
        ensure!(passes(lab, &service, true, ALLOWED)?, "TCP to port 5001 is refused");
        ensure!(!passes(lab, &service, false, FORBIDDEN)?, "UDP to port 5001 passes");
        Ok(())
    })
}

/// A control connection: the helper changes the address in its messages, so that it stays with the kernel, and
/// expects the connection for data, which the ruleset does not allow otherwise.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn ftp_stays_with_the_kernel_and_its_data_is_carried() -> Result<()> {
    let lab = lab()?;
    let probe = "table inet probe { ct helper ftp { type \"ftp\" protocol tcp; }; }; delete table inet probe";
    if let Err(error) = nft(&lab.router, probe) {
        eprintln!("skipped: the kernel has no helper for FTP (nf_conntrack_ftp): {error:#}");
        return Ok(());
    }
    load(&lab.router, "nft", "openwrt-fw4.nft")?;
    let mut running = Ferroute::start(&lab)?;
    let listener = lab.right.enter(|| Ok(TcpListener::bind(socket((RIGHT4, 21))?)?))?;
    let client = lab.left.enter(|| Ok(TcpStream::connect(socket((RIGHT4, 21))?)?))?;
    let (server, _) = listener.accept()?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    let mut control = Control { client: BufReader::new(client), server: BufReader::new(server) };
    // The helper reads no command before it has seen the end of one.
    control.command("USER anonymous\r\n")?;
    // 195 * 256 + 80 = 50000.
    let data = lab.left.enter(|| Ok(TcpListener::bind(socket((LEFT4, 50_000))?)?))?;
    let command = control.command("PORT 198,18,1,2,195,80\r\n")?;
    let numbers = command.trim().trim_start_matches("PORT ").split(',');
    let numbers = numbers.map(|it| Ok(it.parse::<u8>()?)).collect::<Result<Vec<u8>>>()?;
    let [a, b, c, d, high, low] = numbers[..] else { anyhow::bail!("the server got {command}") };
    let translated = SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low])));
    ensure!(translated.ip() == RT_RIGHT4.parse::<IpAddr>()?, "the server got {command}");
    let timeout = Duration::from_secs(5);
    let sender = lab.right.enter(|| Ok(TcpStream::connect_timeout(&translated, timeout)?))?;
    let (receiver, from) = data.accept()?;
    ensure!(from.ip() == RIGHT4.parse::<IpAddr>()?, "the client sees {from}");
    let talk = Conversation::over(sender, receiver)?;
    for round in 0..2 {
        ensure!(are_carried(&running, &[&talk]), "{round}: {}", running.account());
        let before = running.forwarded_by_kernel()?;
        for _ in 0..20 {
            ensure!(control.command("NOOP\r\n")? == "NOOP\r\n", "{round}: another command");
        }
        // A command and its answer, besides what only acknowledges.
        let by_kernel = running.forwarded_by_kernel()?.v4 - before.v4;
        ensure!(ferroute::by_kernel() || by_kernel >= 40, "{round}: the kernel has {by_kernel}");
        let listed = lab.router.run("conntrack -L -p tcp --dport 21")?;
        ensure!(
            listed.contains("ESTABLISHED") && listed.contains("helper=ftp"),
            "{round}: {listed}"
        );
        running.kill()?;
        ensure!(talk.goes_on(), "{round}: the connection for data died");
        control.command("NOOP\r\n")?;
        running = Ferroute::start(&lab)?;
    }
    Ok(())
}

struct Control {
    client: BufReader<TcpStream>,
    server: BufReader<TcpStream>,
}

impl Control {
    /// Sends a command, answers it, and returns it as the server got it.
    fn command(&mut self, line: &str) -> Result<String> {
        self.client.get_mut().write_all(line.as_bytes())?;
        let (mut command, mut answer) = (String::new(), String::new());
        self.server.read_line(&mut command).context("no command")?;
        self.server.get_mut().write_all(b"200 done\r\n")?;
        self.client.read_line(&mut answer).context("no answer")?;
        ensure!(answer == "200 done\r\n", "the answer is {answer}");
        Ok(command)
    }
}

/// Subscribers of the carrier. Each has one flow.
const FLOWS: u32 = 6000;

/// A prefix of subscribers, and the addresses and ports of the pool for it, first and last.
struct Share {
    network: Ipv4Addr,
    len: u32,
    addresses: (Ipv4Addr, Ipv4Addr),
    ports: (u16, u16),
}

/// The elements of the map in `carrier-nat.nft`: `100.64.0.0/19 : 203.0.113.0-203.0.113.3 . 1024-32767`.
fn shares() -> Result<Vec<Share>> {
    let text = fs::read_to_string(repository().join("tests/rulesets/carrier-nat.nft"))?;
    let elements = text.lines().filter_map(|line| {
        let (prefix, pool) = line.trim().trim_end_matches(',').split_once(" : ")?;
        Some((prefix.split_once('/')?, pool.split_once(" . ")?))
    });
    let share = |((network, len), (addresses, ports)): ((&str, &str), (&str, &str))| {
        let (first, last) = addresses.split_once('-').context("no addresses")?;
        let (low, high) = ports.split_once('-').context("no ports")?;
        Ok(Share {
            network: network.parse()?,
            len: len.parse()?,
            addresses: (first.parse()?, last.parse()?),
            ports: (low.parse()?, high.parse()?),
        })
    };
    elements.filter(|((network, _), _)| network.starts_with("100.64")).map(share).collect()
}

fn subscriber(n: u32) -> SocketAddr {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + n * (65_536 / FLOWS));
    SocketAddr::from((address, 2000 + (n % 60_000) as u16))
}

/// Sends a datagram of each flow, and returns the addresses that the server saw: it answers with them.
///
/// The sockets are opened again each time, a few at once: a process may have 1024 files, usually.
fn seen_by_server(left: &Netns, server: SocketAddr) -> Result<BTreeMap<SocketAddr, SocketAddr>> {
    left.enter(|| {
        let mut seen = BTreeMap::new();
        for batch in (0..FLOWS).collect::<Vec<_>>().chunks(100) {
            let mut sockets = Vec::new();
            for n in batch {
                let socket = UdpSocket::bind(subscriber(*n))?;
                socket.set_read_timeout(Some(Duration::from_secs(5)))?;
                socket.send_to(&[7; 32], server)?;
                sockets.push(socket);
            }
            for socket in sockets {
                let mut octets = [0; 64];
                let local = socket.local_addr()?;
                let len =
                    socket.recv(&mut octets).with_context(|| format!("no answer to {local}"))?;
                seen.insert(local, std::str::from_utf8(&octets[..len])?.parse()?);
            }
        }
        Ok(seen)
    })
}

/// The flows as `conntrack -L` lists them: the subscribers, and the addresses to which answers are sent.
fn listed(router: &Netns) -> Result<BTreeMap<SocketAddr, SocketAddr>> {
    let text = router.run("conntrack -L -p udp --dport 5001")?;
    let mut flows = BTreeMap::new();
    for line in text.lines().filter(|line| line.contains("[ASSURED]")) {
        let values = |name: &str| -> Vec<&str> {
            line.split_whitespace().filter_map(|field| field.strip_prefix(name)).collect()
        };
        let (src, sport) = (values("src="), values("sport="));
        let (dst, dport) = (values("dst="), values("dport="));
        let entry = || Some(((src.first()?, sport.first()?), (dst.get(1)?, dport.get(1)?)));
        let (from, to) = entry().with_context(|| format!("another line: {line}"))?;
        flows.insert(
            SocketAddr::new(from.0.parse()?, from.1.parse()?),
            SocketAddr::new(to.0.parse()?, to.1.parse()?),
        );
    }
    Ok(flows)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn thousands_of_flows_through_a_carrier_nat_keep_their_addresses() -> Result<()> {
    let lab = Lab::up()?;
    lab.left.run("ip route add local 100.64.0.0/16 dev lo")?;
    lab.router.run(&format!("ip route add 100.64.0.0/16 via {LEFT4}"))?;
    load(&lab.router, "nft", "carrier-nat.nft")?;
    let mut running = Ferroute::start(&lab)?;
    let at = socket((RIGHT4, 5001))?;
    none_passes(&lab, &[Path::direct(Left, Right, (RIGHT4, 5001))], &[true, false])?;
    ping_all(&lab.left, &format!("-c 2 -i 0.1 -W 5 -I 100.64.7.7 {RIGHT4}"))?;
    let server = lab.right.enter(|| Ok(UdpSocket::bind(at)?))?;
    server.set_read_timeout(Some(Duration::from_millis(50)))?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                if let Ok((_, from)) = server.recv_from(&mut [0; 64]) {
                    let _ = server.send_to(from.to_string().as_bytes(), from);
                }
            }
        });
        let result = many_are_translated(&lab, &mut running, at);
        is_over.store(true, Relaxed);
        result
    })
}

fn many_are_translated(lab: &Lab, running: &mut Ferroute, server: SocketAddr) -> Result<()> {
    let shares = shares()?;
    let seen = seen_by_server(&lab.left, server)?;
    ensure!(seen.len() == FLOWS as usize, "{} of {FLOWS} flows", seen.len());
    for (from, to) in &seen {
        let (IpAddr::V4(from), IpAddr::V4(address)) = (from.ip(), to.ip()) else { continue };
        let is_in =
            |share: &&Share| (u32::from(from) ^ u32::from(share.network)) >> (32 - share.len) == 0;
        let share = shares.iter().find(is_in).with_context(|| format!("{from} has no pool"))?;
        let is_right = (share.addresses.0..=share.addresses.1).contains(&address)
            && (share.ports.0..=share.ports.1).contains(&to.port());
        ensure!(is_right, "{from} became {to}");
    }
    let distinct: std::collections::BTreeSet<_> = seen.values().collect();
    ensure!(distinct.len() == seen.len(), "two flows have the same address");
    for round in 0..2 {
        // The kernel counts a connection as established in both directions after 2 s.
        let begun = Instant::now();
        loop {
            ensure!(seen_by_server(&lab.left, server)? == seen, "{round}: another translation");
            let is_ready = match ferroute::by_kernel() {
                true => listed(&lab.router)?.len() == seen.len(),
                false => carries(running, FLOWS as usize),
            };
            if is_ready {
                break;
            }
            let status = || running.json(&["status"]);
            ensure!(begun.elapsed() < Duration::from_secs(20), "{round}: {:?}", status());
            thread::sleep(Duration::from_millis(300));
        }
        let before = running.forwarded_by_kernel()?;
        ensure!(seen_by_server(&lab.left, server)? == seen, "{round}: another translation");
        let after = running.forwarded_by_kernel()?;
        ensure!(ferroute::by_kernel() || after == before, "{round}: {}", running.account());
        ensure!(listed(&lab.router)? == seen, "{round}: conntrack lists other flows");
        if ferroute::by_kernel() {
            return Ok(());
        }
        running.kill()?;
        ensure!(seen_by_server(&lab.left, server)? == seen, "{round}: another translation");
        *running = Ferroute::start(lab)?;
    }
    Ok(())
}
