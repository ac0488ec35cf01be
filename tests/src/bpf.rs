//! BPF programs attached to the kernel's hooks by `tests/tools/attach-bpf`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};

use crate::{Netns, lab};

/// An attached program. Dropping this detaches one that is attached by a link.
#[derive(Debug)]
pub struct Attached {
    child: Child,
}

impl Attached {
    /// Attaches a program as `words` say, see the head of the tool. `None`: this kernel has no such hook.
    ///
    /// # Errors
    /// When it cannot be attached for another reason.
    pub fn new(namespace: &Netns, words: &str) -> Result<Option<Attached>> {
        let mut command = namespace.command(lab::repository().join("tests/tools/attach-bpf"));
        command.args(words.split_whitespace()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut this = Attached { child: command.spawn().context("attach-bpf")? };
        let mut line = String::new();
        let stdout = this.child.stdout.take().context("a pipe")?;
        BufReader::new(stdout).read_line(&mut line)?;
        match line.trim() {
            "attached" => Ok(Some(this)),
            no if no.starts_with("no such hook") => {
                eprintln!("skipped: {words}: {no}");
                this.child.wait()?;
                Ok(None)
            }
            other => bail!("attach-bpf {words}: {other:?}"),
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // The tool waits for the end of its input.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
