//! The view on a terminal. It is drawn after each answer of the daemon and each key, never in between.
//!
//! - [`model`]: what is known of the router;
//! - [`state`]: what the user has chosen, and the keys;
//! - [`lists`]: the one seen as the other says;
//! - [`table`]: lists on the screen;
//! - [`draw`]: the whole screen;
//! - [`theme`]: colours and characters.
//!
//! The terminal is restored when this ends with or without an error, after a panic, and before SIGTERM, SIGINT, SIGHUP,
//! SIGQUIT (which end it) or SIGTSTP (which stops it) take effect: they are read from a descriptor. After SIGKILL and
//! other signals that end a process, and while it is stopped by SIGSTOP, it is not; `reset` restores it then.

mod draw;
mod lists;
mod model;
mod state;
mod table;
mod theme;

use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::{DefaultTerminal, Terminal};

use self::model::Model;
use self::state::{Effect, List, State};
use self::theme::Theme;
use super::sample::{Feed, FlowWish, News, Sampler, Wish};
use crate::cli::Usage;
use crate::control::api::flows::RateKey;
use crate::control::process::signals::{self, TerminalSignal, TerminalSignals};

/// Flows that are asked for: more than fit on a screen.
const FLOWS: u32 = 200;
/// Messages that wait to be handled, for example while this is stopped.
const MESSAGES_MAX: usize = 64;
/// The exit status after a panic, as Rust's programs have it.
const PANIC_STATUS: i32 = 101;
/// How often the time without an answer is shown anew.
const LOST_INTERVAL: Duration = Duration::from_secs(1);

/// What the threads report.
#[derive(Debug)]
enum Message {
    News(News),
    Terminal(Event),
    Signal(TerminalSignal),
    /// The terminal cannot be read any more.
    Failed(io::Error),
}

impl From<News> for Message {
    fn from(news: News) -> Message {
        Message::News(news)
    }
}

/// A terminal that is restored when dropped; a panic restores it, too.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> Result<Screen> {
        let terminal = set_up().context("the terminal cannot be set up; try --batch")?;
        let screen = Screen(terminal);
        // The program ends after a panic, in whichever thread it was.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let _ = restore();
            hook(panic);
            std::process::exit(PANIC_STATUS);
        }));
        Ok(screen)
    }

    /// Stops the program, as ^Z does where the terminal handles it, and goes on when it is continued.
    fn suspend(&mut self) -> Result<()> {
        restore().context("cannot restore the terminal")?;
        signals::stop()?;
        // Without `ratatui::try_init`, each call of which sets one more hook for panics.
        self.0 = set_up().context("the terminal cannot be set up again")?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nobody can be told.
        let _ = restore();
    }
}

/// Takes the terminal: no echo, every key at once, and a screen of its own. If that fails, it is as before.
fn set_up() -> io::Result<DefaultTerminal> {
    let take = || {
        enable_raw_mode()?;
        execute!(io::stdout(), EnterAlternateScreen)?;
        Terminal::new(CrosstermBackend::new(io::stdout()))
    };
    take().inspect_err(|_| {
        let _ = restore();
    })
}

/// Gives the terminal back as it was, with its cursor.
fn restore() -> io::Result<()> {
    let modes = disable_raw_mode();
    execute!(io::stdout(), LeaveAlternateScreen, Show)?;
    modes
}

/// Shows the router until a key or signal ends it, or so many measurements have been shown.
///
/// # Errors
/// If no daemon answers at the start, or the terminal fails.
pub fn run(control: &Path, interval_ms: u32, count: Option<u64>) -> Result<()> {
    let is_dumb = |term: std::ffi::OsString| term == "dumb" || term.is_empty();
    if std::env::var_os("TERM").is_none_or(is_dumb) {
        let why =
            "TERM does not name a terminal that can be drawn on; set it, or add --batch [COUNT]";
        return Err(Usage(why.into()).into());
    }
    // Errors of the first question are printed as those of other commands.
    let first = Sampler::connect(control)?.sample()?;
    // Before threads are started, which inherit that the signals are blocked.
    let signals = TerminalSignals::take()?;
    let (to, messages) = bounded(MESSAGES_MAX);
    let feed = Feed::start(control, &to)?;
    let mut model = Model::default();
    model.take(News::Sample(Box::new(first)));
    let theme = Theme::of_environment(|name| std::env::var_os(name));
    let mut screen = Screen::open()?;
    start_readers(signals, &to)?;
    drop(to);
    let state = State::new(interval_ms);
    Top { model, state, theme, feed, count }.run(&mut screen, &messages)
}

/// The threads that wait for keys and signals. They end with the program: neither can be woken.
fn start_readers(signals: TerminalSignals, to: &Sender<Message>) -> Result<()> {
    let (keys, to) = (to.clone(), to.clone());
    thread::Builder::new().name("top-keys".into()).spawn(move || {
        loop {
            let message = event::read().map_or_else(Message::Failed, Message::Terminal);
            let is_last = matches!(message, Message::Failed(_));
            if keys.send(message).is_err() || is_last {
                return;
            }
        }
    })?;
    thread::Builder::new()
        .name("top-signals".into())
        .spawn(move || while to.send(Message::Signal(signals.wait())).is_ok() {})?;
    Ok(())
}

/// Everything that is between the messages.
struct Top {
    model: Model,
    state: State,
    theme: Theme,
    feed: Feed,
    count: Option<u64>,
}

impl Top {
    fn run(mut self, screen: &mut Screen, messages: &Receiver<Message>) -> Result<()> {
        loop {
            let Top { model, state, theme, .. } = &mut self;
            let drawn = screen.0.draw(|frame| draw::draw(frame.buffer_mut(), model, state, *theme));
            drawn.context("cannot draw on the terminal")?;
            self.wish();
            if self.count.is_some_and(|count| self.model.measured >= count) {
                return Ok(());
            }
            let first = match messages.recv_timeout(LOST_INTERVAL) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => bail!("a thread has ended"),
            };
            // What has come meanwhile is drawn at once.
            let more = messages.try_iter().take(MESSAGES_MAX);
            for message in std::iter::once(first).chain(more) {
                if !self.handle(message, screen)? {
                    return Ok(());
                }
            }
        }
    }

    /// Returns whether to go on.
    fn handle(&mut self, message: Message, screen: &mut Screen) -> Result<bool> {
        match message {
            Message::News(_) if self.state.is_paused => {}
            Message::News(News::Flows(_) | News::NoFlows(_)) if !self.state.has_flows => {}
            Message::News(news) => self.model.take(news),
            Message::Terminal(Event::Key(key)) => match self.state.key(key) {
                Effect::None => {}
                Effect::Quit => return Ok(false),
                Effect::Redraw => screen.0.clear().context("cannot draw on the terminal")?,
                Effect::Suspend => screen.suspend()?,
            },
            // The next drawing asks for the size.
            Message::Terminal(_) => {}
            Message::Signal(TerminalSignal::End) => return Ok(false),
            Message::Signal(TerminalSignal::Stop) => screen.suspend()?,
            Message::Failed(error) => {
                return Err(error).context("cannot read the terminal");
            }
        }
        Ok(true)
    }

    /// Asks for what is shown, and for no more.
    fn wish(&mut self) {
        let state = &self.state;
        let is_shown = state.drawn[List::Flows as usize].page.is_some() && state.has_flows;
        if !state.has_flows {
            self.model.forget_flows();
        }
        if state.is_paused {
            self.model.expect_nothing();
        }
        let by_packets = state.sorts[List::Flows as usize]
            .is_some_and(|sort| lists::FLOW_PACKETS.contains(&sort.column));
        let flows = FlowWish {
            interval_ms: state.interval_ms,
            flows: FLOWS,
            sort: if by_packets { RateKey::Packets } else { RateKey::Bits },
        };
        self.feed.set(Wish {
            interval_ms: (!state.is_paused).then_some(state.interval_ms),
            flows: (is_shown && !state.is_paused).then_some(flows),
        });
    }
}
