//! Keys as a file has them, and what is not shown of a file that may have keys.
//!
//! No message quotes a key: the text of a key is not part of the errors here, and [`without_keys`] removes what may be
//! one from all others.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

use crate::ipsec::Secret;

/// From so many hexadecimal digits in a row on, a message does not show them. Integers of TOML have 19 at most, keys for
/// encryption 32 and more.
const DIGITS_SHOWN: usize = 20;

/// Maximum length of a quoted word, octets: the longest name of an algorithm is shorter.
const WORD_MAX: usize = 32;

/// `"0x0102…"`, or an empty string for an algorithm without a key.
pub(super) struct Key(pub Secret);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Key, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key like \"0x0102…\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Key, E> {
                parse(text).map(|octets| Key(Secret::new(octets))).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Key, E> {
                Err(E::custom("a key without quotes, expected one like \"0x0102…\""))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The octets, in memory that was allocated once.
///
/// # Errors
/// What is wrong, without a digit of the key.
fn parse(text: &str) -> Result<Vec<u8>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let Some(digits) = text.strip_prefix("0x") else {
        return Err("a key that does not begin with 0x, expected one like \"0x0102…\"".to_owned());
    };
    if let Some(at) = digits.bytes().position(|c| !c.is_ascii_hexdigit()) {
        let n = at + 1;
        return Err(format!("character {n} after 0x of a key is none of 0 to 9 and a to f"));
    }
    if !digits.len().is_multiple_of(2) {
        let found = digits.len();
        return Err(format!("a key of {found} hexadecimal digits, expected two for each octet"));
    }
    let digit = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
    let mut octets = Vec::with_capacity(digits.len() / 2);
    octets.extend(digits.as_bytes().chunks_exact(2).map(|it| digit(it[0]) << 4 | digit(it[1])));
    Ok(octets)
}

/// A message without long runs of hexadecimal digits: a file may have a key where none belongs.
pub(in crate::control::config) fn without_keys(message: &str) -> String {
    let mut shown = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(start) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        let (before, run) = rest.split_at(start);
        let (run, after) =
            run.split_at(run.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(run.len()));
        shown += before;
        shown += if run.len() < DIGITS_SHOWN { run } else { "…" };
        rest = after;
    }
    shown + rest
}

/// A message about the `[xfrm]` section, where any text may be, or end in, a key: of what it quotes, only single words like
/// those of algorithms are shown.
pub(in crate::control::config) fn with_words_only(message: &str) -> String {
    let is_of_word =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "(),-_./[]".contains(c);
    let is_word = |text: &str| text.len() <= WORD_MAX && text.chars().all(is_of_word);
    let mut shown = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(start) = rest.find(['"', '`']) {
        let (before, quoted) = rest.split_at(start);
        let (quote, inside) = quoted.split_at(1);
        // One within a text is escaped.
        let ends =
            |(at, _): &(usize, &str)| !inside.get(..*at).is_some_and(|it| it.ends_with('\\'));
        let Some((end, _)) = inside.match_indices(quote).find(ends) else { break };
        let (text, after) = inside.split_at(end);
        shown += before;
        shown += quote;
        shown += if is_word(text) { text } else { "…" };
        shown += quote;
        rest = after.get(1..).unwrap_or_default();
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_pairs_of_digits_and_errors_do_not_quote_them() {
        assert_eq!(parse("0x00fFa1"), Ok(vec![0, 255, 0xa1]));
        assert_eq!([parse(""), parse("0x")], [Ok(vec![]), Ok(vec![])]);
        for wrong in ["c0ffee", "0xc0ffe", "0xc0ffeg", "0Xc0ffee", "0xc0 ff ee", "c0:ff:ee"] {
            let error = parse(wrong).expect_err(wrong);
            assert!(!error.contains("c0") && !error.contains("ff"), "{error}");
        }
    }

    #[test]
    fn long_runs_of_digits_are_not_shown() {
        let key = "0123456789abcdef0123";
        assert_eq!(without_keys(&format!("a `0x{key}`, {key}")), "a `0x…`, …");
        let all = "integer `9223372036854775807`, 2001:db8::1, `deadbeef` é";
        assert_eq!(without_keys(all), all);
    }

    #[test]
    fn of_what_is_quoted_only_words_are_shown() {
        let hidden = [
            ("string \"00:01:02:03\", expected u32", "string \"…\", expected u32"),
            ("unknown algorithm \"cbc(aes) My-Secret\"", "unknown algorithm \"…\""),
            ("a `a b` and `c d`, \"e\\\"f g\" x", "a `…` and `…`, \"…\" x"),
        ];
        for (message, shown) in hidden {
            assert_eq!(with_words_only(message), shown);
        }
        for message in
            ["unknown \"rfc4107(gcm(aes))\"", "unknown field `spy`, expected `spi`", "plain"]
        {
            assert_eq!(with_words_only(message), message);
        }
    }
}
