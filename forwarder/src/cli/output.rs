//! Writing to standard output: text in columns, JSON, colour on a terminal.

use std::fmt;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use super::Usage;
use crate::hdr::file::is_stdout;

/// Writes a line to standard error at the end of the program, unless nobody reads it: a pipe that is
/// full for a second costs the line, not the end.
pub fn last_words(line: fmt::Arguments<'_>) {
    let stderr = io::stderr();
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if !matches!(poll(&mut fds, PollTimeout::from(1000u16)), Ok(0)) {
        let _ = writeln!(stderr.lock(), "{line}");
    }
}

/// Whether one of the files to be written is standard output (`-`), which then is that file's alone.
///
/// # Errors
/// [`Usage`] when more than one is.
pub fn is_taken_by(files: [&Option<PathBuf>; 3]) -> Result<bool> {
    match files.iter().filter(|file| file.as_deref().is_some_and(is_stdout)).count() {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Usage("only one FILE can be `-`, standard output".into()).into()),
    }
}

/// Standard output, in the form that the user asked for.
#[derive(Debug)]
pub struct Output {
    /// JSON is wanted.
    pub json: bool,
    pretty: bool,
}

/// A colour that says how something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// As it should be.
    Good,
    /// To be looked at.
    Odd,
    /// Wrong.
    Bad,
}

impl Output {
    /// `pretty` implies JSON, as it says nothing without.
    pub fn new(json: bool, pretty: bool) -> Output {
        Output { json: json || pretty, pretty }
    }

    /// Prints one JSON value and a line end.
    pub fn json(&self, value: &impl Serialize) -> Result<()> {
        let mut out = stdout();
        if self.pretty {
            serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
        } else {
            serde_json::to_writer(&mut out, value).map_err(io::Error::from)?;
        }
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    }

    /// Prints text that has its line ends.
    pub fn text(&self, text: &str) -> Result<()> {
        let mut out = stdout();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }
}

fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(1 << 16, io::stdout().lock())
}

/// Whether somebody stopped reading, as `head` does; that is nobody's mistake.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// `text` in a colour, if standard output shows colours (a terminal, and no NO_COLOR).
pub fn coloured(text: &str, colour: Colour) -> String {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if !wanted || !io::stdout().is_terminal() {
        return text.to_owned();
    }
    let code = match colour {
        Colour::Good => 32,
        Colour::Odd => 33,
        Colour::Bad => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Lines of cells, each column as wide as its widest cell, two spaces between.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_end_without_spaces() {
        let rows = [vec!["a".into(), "bcd".into()], vec!["efg".into(), "h".into()]];
        assert_eq!(columns(&rows), "a    bcd\nefg  h\n");
        assert_eq!(columns(&[]), "");
    }

    #[test]
    fn a_broken_pipe_is_found_below_its_context() {
        let broken = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&anyhow::Error::from(broken).context("writing")));
        assert!(!is_broken_pipe(&anyhow::anyhow!("else")));
    }
}
