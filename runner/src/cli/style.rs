//! Colours, on a terminal whose user wants them.

use std::ffi::OsStr;
use std::io::IsTerminal;

/// How to write to one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    colours: bool,
}

impl Style {
    pub fn of(stream: &impl IsTerminal) -> Style {
        let variable = |name| std::env::var_os(name);
        Style {
            colours: stream.is_terminal()
                && wanted(variable("NO_COLOR").as_deref(), variable("TERM").as_deref()),
        }
    }

    pub fn has_colours(self) -> bool {
        self.colours
    }

    /// The first words of an error.
    pub fn error(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// The chat's prompt.
    pub fn prompt(self, text: &str) -> String {
        self.paint("1;32", text)
    }

    /// What is said beside an answer.
    pub fn aside(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Whether a terminal is to show colours, by the environment: any value of `NO_COLOR` but the empty one says no
/// (no-color.org), and so does a terminal that knows no control sequences.
fn wanted(no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty) && term.is_some_and(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_decides() {
        let wanted = |no_color: Option<&str>, term: Option<&str>| {
            super::wanted(no_color.map(OsStr::new), term.map(OsStr::new))
        };
        assert!(wanted(None, Some("xterm")));
        assert!(wanted(Some(""), Some("xterm")));
        assert!(!wanted(Some("0"), Some("xterm")));
        assert!(!wanted(None, Some("dumb")));
        assert!(!wanted(None, None));
    }

    #[test]
    fn text_is_painted_or_left_alone() {
        assert_eq!(Style { colours: false }.error("x"), "x");
        assert_eq!(Style { colours: true }.prompt("> "), "\x1b[1;32m> \x1b[0m");
    }
}
