//! A terminal for programs that draw on one: tmux, of which the screen can be read and the size changed.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::eventually;

/// A tmux server of its own with one window, in which a shell runs. It ends when dropped.
#[derive(Debug)]
pub struct Tmux {
    dir: tempfile::TempDir,
}

impl Tmux {
    /// Starts it, with a locale that has UTF-8.
    ///
    /// # Errors
    /// When tmux is missing or does not start.
    pub fn start(columns: u16, lines: u16) -> Result<Tmux> {
        let this = Tmux { dir: tempfile::tempdir()? };
        let (columns, lines) = (columns.to_string(), lines.to_string());
        // The prompt is told from what is printed.
        let shell = "env ENV= PS1='ready> ' sh -i";
        this.run(&["-f", "/dev/null", "new-session", "-d", "-x", &columns, "-y", &lines, shell])?;
        this.wait_for("prompt", |screen| screen.starts_with("ready>"))?;
        Ok(this)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("tmux")
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("tmux");
        command.arg("-u").arg("-S").arg(self.socket()).args(args);
        command.env("LC_ALL", "C.UTF-8").env_remove("TMUX").env_remove("NO_COLOR");
        let output = command.output().context("tmux: run scripts/setup")?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tmux {args:?}: {stderr}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What is on the screen, without blanks at the ends of lines.
    ///
    /// # Errors
    /// When tmux has ended.
    pub fn screen(&self) -> Result<String> {
        self.run(&["capture-pane", "-p"])
    }

    /// The same with the escape sequences of colours.
    ///
    /// # Errors
    /// As for [`Tmux::screen`].
    pub fn coloured_screen(&self) -> Result<String> {
        self.run(&["capture-pane", "-p", "-e"])
    }

    /// Waits for a screen, and returns it.
    ///
    /// # Errors
    /// When it does not come; the error has the last screen.
    pub fn wait_for(&self, what: &str, mut is_it: impl FnMut(&str) -> bool) -> Result<String> {
        let mut screen = String::new();
        let came = eventually(|| {
            screen = self.screen().unwrap_or_else(|error| format!("{error:#}"));
            is_it(&screen)
        });
        if came { Ok(screen) } else { bail!("no {what}:\n{screen}") }
    }

    /// Presses keys, by the names of `tmux send-keys`.
    ///
    /// # Errors
    /// As for [`Tmux::screen`].
    pub fn press(&self, keys: &[&str]) -> Result<()> {
        self.run(&[&["send-keys"], keys].concat()).map(drop)
    }

    /// Types a command line.
    ///
    /// # Errors
    /// As for [`Tmux::screen`].
    pub fn type_line(&self, line: &str) -> Result<()> {
        self.run(&["send-keys", "-l", line])?;
        self.press(&["Enter"])
    }

    /// Changes the size.
    ///
    /// # Errors
    /// As for [`Tmux::screen`].
    pub fn resize(&self, columns: u16, lines: u16) -> Result<()> {
        let (columns, lines) = (columns.to_string(), lines.to_string());
        self.run(&["resize-window", "-x", &columns, "-y", &lines]).map(drop)
    }

    /// Whether a program uses the alternate screen.
    ///
    /// # Errors
    /// As for [`Tmux::screen`].
    pub fn is_alternate(&self) -> Result<bool> {
        Ok(self.run(&["display-message", "-p", "#{alternate_on}"])?.trim() == "1")
    }

    /// Whether the cursor is visible.
    ///
    /// # Errors
    /// As for [`Tmux::screen`].
    pub fn has_cursor(&self) -> Result<bool> {
        Ok(self.run(&["display-message", "-p", "#{cursor_flag}"])?.trim() == "1")
    }

    /// The process ID of the shell.
    ///
    /// # Errors
    /// As for [`Tmux::screen`].
    pub fn shell_pid(&self) -> Result<u32> {
        Ok(self.run(&["display-message", "-p", "#{pane_pid}"])?.trim().parse()?)
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = self.run(&["kill-server"]);
    }
}
