//! Requests on the control socket, and their answers.
//!
//! A line is parsed and answered from the state of a router that received a few netlink messages. Request
//! and answer must be unchanged after serializing and parsing.
#![no_main]

use std::cell::RefCell;

use ferroute::capture::Filter;
use ferroute::control::api::route_get::route_get;
use ferroute::control::api::rows::RowWriter;
use ferroute::control::api::server::parse;
use ferroute::control::api::{Envelope, Request, Response, RouteGetRequest};
use ferroute_fuzz::mirror::{self, TestMirror};
use libfuzzer_sys::fuzz_target;

/// The router's netlink messages: a seed of the target `netlink`.
const MESSAGES: &[u8] = include_bytes!("../corpus/netlink/router");

thread_local! {
    static ROUTER: RefCell<TestMirror> = RefCell::new({
        let mut told = TestMirror::default();
        mirror::parse(MESSAGES).iter().for_each(|record| told.take(record));
        told.compile();
        told
    });
}

fn route(router: &TestMirror, request: &RouteGetRequest) -> Vec<u8> {
    let links = || router.tables().links.iter();
    let named = |name: &String| links().find(|link| link.name == *name);
    let iif = request.iif.as_ref().and_then(named).map_or(1, |link| link.ifindex);
    let mut line = Vec::new();
    let mut to = RowWriter::new(&mut line, request.format);
    for addr in &request.addrs {
        let row = route_get(router.tables(), *addr, request.from, iif, request.mark);
        to.row(&row).expect("a vector takes everything");
    }
    to.finish().expect("a vector takes everything");
    line
}

fn line(response: &Response) -> Vec<u8> {
    let mut line = serde_json::to_vec(&Envelope::new(response)).expect("is written");
    line.push(b'\n');
    line
}

fn answer(request: &Request) -> Vec<u8> {
    ROUTER.with_borrow(|router| match request {
        Request::Show(request) => router.answer(request),
        Request::RouteGet(request) => route(router, request),
        Request::Capture(request) => match Filter::new(&request.filter) {
            Ok(filter) => line(&Response::error(format!("{:?}", filter.run(&[0; 60])))),
            Err(error) => line(&Response::error(error)),
        },
        _ => line(&Response::error("the daemon alone knows")),
    })
}

fuzz_target!(|octets: &[u8]| {
    for request in octets.split_inclusive(|octet| *octet == b'\n') {
        let answer = match parse(request) {
            Ok(request) => {
                let again = serde_json::to_vec(&Envelope::new(&request)).expect("is written");
                assert_eq!(parse(&again).as_ref(), Ok(&request), "a request survives the wire");
                answer(&request)
            }
            Err(message) => line(&Response::error(message)),
        };
        assert_eq!(answer.iter().position(|octet| *octet == b'\n'), Some(answer.len() - 1));
        let back: Envelope<Response> = serde_json::from_slice(&answer).expect("is read");
        // Lists are not written by the code that reads them.
        if !matches!(back.body, Response::Rendered(_)) {
            assert!(line(&back.body) == answer, "an answer survives the wire");
        }
    }
});
