//! What a user can type besides messages.

use std::path::PathBuf;

pub const HELP: &str = "\
/reset          forget the conversation (/clear does so, too)
/system TEXT    set the system prompt; without TEXT, show it; with - for TEXT, remove it
/seed N         same seed, same answers; without N, show it
/save FILE      write the conversation to FILE, as JSON
/load FILE      go on with a conversation that /save wrote
/stats          the last answer's tokens a second and time to the first token; tokens of the context that are used
/exit           leave; so do Ctrl-D and Ctrl-C twice
/help           this

Enter           send; a pasted text may have several lines
\\ Enter         or Alt-Enter: begin a new line
Up, Ctrl-R      earlier lines, searching them
Ctrl-C          stop an answer, or drop the line
A message that begins with a command's name: put a space before it.";

/// A command and its argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Help,
    Reset,
    ShowSystem,
    /// None: there is to be no system prompt.
    SetSystem(Option<String>),
    ShowSeed,
    SetSeed(u64),
    Save(PathBuf),
    Load(PathBuf),
    Stats,
    Exit,
}

/// All names but aliases.
pub const NAMES: [&str; 8] = [
    "/help", "/reset", "/system", "/seed", "/save", "/load", "/stats", "/exit",
];

impl Command {
    /// The command that a text is; none where it is a message. A command is a slash and letters and nothing before it,
    /// so that pasted paths and programs are messages. The error is for the user.
    pub fn parse(text: &str) -> Option<Result<Command, String>> {
        let (name, argument) = match text.split_once(char::is_whitespace) {
            Some((name, argument)) => (name, argument.trim()),
            None => (text, ""),
        };
        let letters = name.strip_prefix('/')?;
        let is_name = !letters.is_empty() && letters.bytes().all(|b| b.is_ascii_alphabetic());
        is_name.then(|| Command::named(name, argument))
    }

    fn named(name: &str, argument: &str) -> Result<Command, String> {
        let alone = |command| match argument {
            "" => Ok(command),
            _ => Err(format!("{name} takes nothing after it, not {argument:?}")),
        };
        let file = || match argument {
            "" => Err(format!("{name} wants a file: {name} FILE")),
            _ => Ok(path(argument, std::env::home_dir())),
        };
        match name {
            "/help" => alone(Command::Help),
            "/reset" | "/clear" => alone(Command::Reset),
            "/stats" => alone(Command::Stats),
            "/exit" | "/quit" => alone(Command::Exit),
            "/save" => file().map(Command::Save),
            "/load" => file().map(Command::Load),
            "/system" => Ok(match argument {
                "" => Command::ShowSystem,
                "-" => Command::SetSystem(None),
                _ => Command::SetSystem(Some(argument.to_owned())),
            }),
            "/seed" => match argument {
                "" => Ok(Command::ShowSeed),
                _ => argument
                    .parse()
                    .map(Command::SetSeed)
                    .map_err(|_| format!("/seed wants a whole number from 0 up, not {argument:?}")),
            },
            _ => Err(format!(
                "there is no command {name}; there are {}. To send it as a message, put a space before it.",
                NAMES.join(" ")
            )),
        }
    }

    /// Whether it makes no sense where nothing is kept of what was said.
    pub fn is_about_conversation(&self) -> bool {
        match self {
            Command::Reset
            | Command::ShowSystem
            | Command::SetSystem(_)
            | Command::Save(_)
            | Command::Load(_) => true,
            Command::Help
            | Command::ShowSeed
            | Command::SetSeed(_)
            | Command::Stats
            | Command::Exit => false,
        }
    }
}

/// A path as typed: `~/` is the home folder, as in a shell.
fn path(text: &str, home: Option<PathBuf>) -> PathBuf {
    match (text.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Command {
        Command::parse(text)
            .unwrap_or_else(|| panic!("{text:?} is a message"))
            .unwrap_or_else(|fault| panic!("{text:?}: {fault}"))
    }

    fn fault(text: &str) -> String {
        Command::parse(text)
            .unwrap_or_else(|| panic!("{text:?} is a message"))
            .expect_err(text)
    }

    #[test]
    fn commands_and_arguments() {
        assert_eq!(parse("/help"), Command::Help);
        assert_eq!(parse("/reset "), Command::Reset);
        assert_eq!(parse("/clear"), Command::Reset);
        assert_eq!(parse("/quit"), Command::Exit);
        assert_eq!(parse("/system"), Command::ShowSystem);
        assert_eq!(parse("/system -"), Command::SetSystem(None));
        assert_eq!(
            parse("/system  Answer in French.\nBriefly."),
            Command::SetSystem(Some("Answer in French.\nBriefly.".into()))
        );
        assert_eq!(parse("/seed"), Command::ShowSeed);
        assert_eq!(parse("/seed 12"), Command::SetSeed(12));
        assert_eq!(
            parse("/save my chat.json"),
            Command::Save("my chat.json".into())
        );
    }

    #[test]
    fn messages_are_no_commands() {
        for text in [
            "Hello",
            " /reset",
            "/",
            "/etc/passwd?",
            "/* C */",
            "/2",
            "a /exit",
            "",
        ] {
            assert_eq!(Command::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn faults_say_what_to_type() {
        let text = fault("/sav x");
        assert!(
            text.contains("/sav") && text.contains("/save") && text.contains("space"),
            "{text}"
        );
        assert!(fault("/seed x").contains("whole number"));
        assert!(fault("/seed -1").contains("whole number"));
        assert!(fault("/save").contains("/save FILE"));
        assert!(fault("/exit now").contains("\"now\""));
    }

    #[test]
    fn every_name_is_a_command_that_help_explains() {
        for name in NAMES {
            assert!(HELP.contains(name), "{name}");
            if let Some(Err(fault)) = Command::parse(name) {
                assert!(fault.contains("wants a file"), "{fault}");
            }
        }
    }

    #[test]
    fn a_tilde_is_the_home_folder() {
        let home = || Some(PathBuf::from("/home/me"));
        assert_eq!(
            path("~/a b.json", home()),
            PathBuf::from("/home/me/a b.json")
        );
        assert_eq!(path("~/x", None), PathBuf::from("~/x"));
        assert_eq!(path("/tmp/x", home()), PathBuf::from("/tmp/x"));
    }
}
