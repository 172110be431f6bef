//! Progress bars that show the progress and the remaining time. Without a terminal, only notes are printed.

use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::say;
use layer0::progress::{Progress, counted};

/// A bar on standard error, for as long as an operation lasts.
pub struct Bar(Mutex<Option<Drawn>>);

struct Drawn {
    bar: ProgressBar,
    texts: u64,
}

impl Bar {
    pub fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn with(&self, f: impl FnOnce(&mut Option<Drawn>)) {
        f(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    fn draw(&self, template: &str, what: &str, done: u64, total: u64) {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        // indicatif draws only if standard error is a terminal.
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style);
        bar.set_message(what.to_owned());
        bar.set_position(done);
        // The rate counts only the progress of this run, not that of an earlier, interrupted one.
        bar.reset_eta();
        bar.set_prefix(counted(0u64, "text"));
        self.with(|current| *current = Some(Drawn { bar, texts: 0 }));
    }
}

impl Progress for Bar {
    fn start(&self, what: &str, done: u64, total: u64) {
        self.draw("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left", what, done, total);
    }

    fn start_counted(&self, what: &str, total: u64) {
        self.draw("{msg} {wide_bar} {pos}/{len} {eta} left", what, 0, total);
    }

    /// The bar shows the number of texts. Its length follows from the bytes, because the total number of texts is not
    /// known in advance.
    fn start_texts(&self, what: &str, bytes: u64) {
        self.draw("{msg}: {prefix} {wide_bar} {percent} % {eta} left", what, 0, bytes);
    }

    fn advance_texts(&self, texts: u64, bytes: u64) {
        self.with(|current| {
            if let Some(drawn) = current {
                drawn.texts += texts;
                drawn.bar.set_prefix(counted(drawn.texts, "text"));
                drawn.bar.inc(bytes);
            }
        });
    }

    fn advance(&self, by: u64) {
        self.with(|current| current.iter().for_each(|drawn| drawn.bar.inc(by)));
    }

    fn describe(&self, what: &str) {
        self.with(|current| current.iter().for_each(|drawn| drawn.bar.set_message(what.to_owned())));
    }

    fn finish(&self) {
        self.with(|current| {
            if let Some(Drawn { bar, .. }) = current.take() {
                bar.finish_and_clear();
            }
        });
    }

    fn note(&self, text: &str) {
        say(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_of_texts_counts_texts_and_moves_by_bytes() {
        let bar = Bar::new();
        bar.start_texts("reading", 100);
        let shown = |expected: (&str, u64)| {
            bar.with(|current| {
                let drawn = current.as_ref().unwrap();
                assert_eq!((drawn.bar.prefix().as_str(), drawn.bar.position()), expected);
            });
        };
        shown(("0 texts", 0));
        bar.advance_texts(1, 7);
        shown(("1 text", 7));
        bar.advance_texts(2, 30);
        bar.advance_texts(0, 3);
        shown(("3 texts", 40));
        bar.finish();
        bar.with(|current| assert!(current.is_none()));
    }
}
