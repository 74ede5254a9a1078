//! `fastrun` as a person uses it: a chat on a pseudo-terminal, prompts through pipes, and what ends an answer.

mod terminal;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use e2e::{bundle, fastrun, succeed};
use serde_json::Value as Json;
use terminal::{ALT_ENTER, CTRL_C, CTRL_D, ENTER, STOPS_READING, Terminal, UP};

const BOLD_GREEN: &str = "\x1b[1;32m";

/// A chat that always says the same, with its home in a folder of its own.
fn chat(home: &Path, options: &[&str]) -> Command {
    let mut command = fastrun(&[&bundle().to_string_lossy(), "--temp", "0"]);
    command
        .args(options)
        .env("HOME", home)
        .env("TERM", "xterm-256color")
        .env_remove("XDG_STATE_HOME")
        .env_remove("NO_COLOR");
    command
}

/// The messages of a saved conversation, as pairs of role and content.
fn messages(path: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(path).expect("the chat was saved");
    let file: Json = serde_json::from_str(&text).expect("it is JSON");
    let text = |value: &Json| value.as_str().expect("a string").to_owned();
    let messages = file["messages"].as_array().expect("there are messages");
    messages
        .iter()
        .map(|m| (text(&m["role"]), text(&m["content"])))
        .collect()
}

#[test]
fn a_chat_is_kept_saved_loaded_and_reset() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let saved = |name: &str| home.path().join(name);
    let mut chat = Terminal::start(chat(home.path(), &["-n", "12"]));
    chat.prompt();
    assert!(
        chat.type_line("Hello").contains("Hello"),
        "the line is echoed"
    );

    let said = chat.type_line("/stats");
    assert!(said.contains("first token after"), "{said}");
    assert!(
        said.contains("tokens/s") && said.contains("context: "),
        "{said}"
    );

    let said = chat.type_line("/save ~/one.json");
    assert!(said.contains("Saved 2 messages to"), "{said}");
    let one = messages(&saved("one.json"));
    assert_eq!(one[0], ("user".into(), "Hello".into()));
    assert_eq!(one[1].0, "assistant");
    assert!(!one[1].1.is_empty());

    assert!(chat.type_line("/reset").contains("forgotten"));
    chat.type_line("/save ~/two.json");
    assert_eq!(messages(&saved("two.json")), []);

    assert!(
        chat.type_line("/load ~/one.json")
            .contains("Loaded 2 messages")
    );
    assert!(chat.type_line("/system Be brief.").contains("is set"));
    assert!(chat.type_line("/seed 7").contains("The seed is 7"));
    // Two lines by a backslash, two by Alt-Enter, and three pasted ones, of which none is a command.
    chat.type_text("One\\");
    chat.type_text(ENTER);
    chat.type_text("two");
    chat.type_text(ALT_ENTER);
    chat.type_line("three");
    chat.type_line("\x1b[200~/* a\n/exit\nb */\x1b[201~");
    assert!(
        chat.type_line("/save ~/two.json")
            .contains("6 messages and the system prompt")
    );
    let two = messages(&saved("two.json"));
    assert_eq!(two[0], ("system".into(), "Be brief.".into()));
    assert_eq!(two[1..3], one);
    assert_eq!(two[3].1, "One\ntwo\nthree");
    assert_eq!(two[5].1, "/* a\n/exit\nb */");

    let said = chat.type_line("/nonsense");
    assert!(
        said.contains("no command /nonsense") && said.contains("/system"),
        "{said}"
    );
    let said = chat.type_line("/load ~/missing.json");
    assert!(
        said.contains("missing.json") && said.contains("No such file"),
        "{said}"
    );
    assert!(chat.type_line("/help").contains("/save FILE"));
    chat.type_text("/exit");
    chat.type_text(ENTER);
    assert_eq!(chat.end(), 0);
}

#[test]
fn the_history_is_there_in_the_next_chat_and_nobody_elses_to_read() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let file = home.path().join(".local/state/fastinfer/history");
    let mut first = Terminal::start(chat(home.path(), &["-n", "1"]));
    first.prompt();
    first.type_line("A line to remember");
    first.type_text(CTRL_D);
    assert_eq!(first.end(), 0);
    let text = fs::read_to_string(&file).expect("the history was written");
    assert!(text.contains("A line to remember"), "{text}");
    let mode = fs::metadata(&file)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");

    let mut second = Terminal::start(chat(home.path(), &["-n", "1"]));
    second.prompt();
    second.type_text(UP);
    let said = second.type_line("!");
    assert!(
        said.contains("A line to remember!") || said.contains("A line to remember"),
        "{said}"
    );
    let text = fs::read_to_string(&file).expect("the history was written");
    assert!(text.contains("A line to remember!"), "{text}");
}

#[test]
fn history_is_opt_out() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let mut homeless = chat(home.path(), &["-n", "1"]);
    homeless.env_remove("HOME");
    for command in [chat(home.path(), &["-n", "1", "--no-history"]), homeless] {
        let mut chat = Terminal::start(command);
        let greeting = chat.prompt();
        assert!(!greeting.contains("history"), "{greeting}");
        chat.type_line("Nothing to remember");
        chat.type_text(CTRL_D);
        assert_eq!(chat.end(), 0);
    }
    let left = fs::read_dir(home.path()).expect("it is there").count();
    assert_eq!(left, 0, "nothing was written");
}

#[test]
fn ctrl_c_stops_an_answer_and_then_leaves() {
    let home = tempfile::tempdir().expect("a temporary folder");
    // Repetition goes on until it is stopped.
    let mut chat = Terminal::start(chat(home.path(), &["--raw", "--stats"]));
    chat.prompt();
    chat.type_text("1, 1, 1, 1, 1, 1, 1, 1, 1,");
    chat.type_text(ENTER);
    chat.expect(STOPS_READING);
    chat.expect(" 1, 1, 1, 1");
    chat.type_text(CTRL_C);
    let said = chat.prompt();
    assert!(said.contains("ended by cancelled"), "{said}");
    // The chat goes on.
    let said = chat.type_line("/stats");
    assert!(said.contains("tokens/s"), "{said}");

    chat.type_text("a line to drop");
    chat.type_text(CTRL_C);
    let said = chat.prompt();
    assert!(said.contains("once more"), "{said}");
    // Something else in between: it takes two again.
    chat.type_line("/seed");
    chat.type_text(CTRL_C);
    chat.prompt();
    chat.type_text(CTRL_C);
    assert_eq!(chat.end(), 0);
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let greeting = |set: &[(&str, &str)]| {
        let mut command = chat(home.path(), &["--no-history"]);
        command.envs(set.iter().copied());
        Terminal::start(command).expect("> ")
    };
    assert!(greeting(&[]).contains(BOLD_GREEN));
    let plain = greeting(&[("NO_COLOR", "1")]);
    assert!(
        !plain.contains(BOLD_GREEN) && !plain.contains("\x1b[2m"),
        "{plain:?}"
    );
    let dumb = greeting(&[("TERM", "dumb")]);
    assert!(!dumb.contains('\x1b'), "{dumb:?}");

    let bundle = bundle().to_string_lossy();
    let mut piped = fastrun(&[
        &bundle, "-p", "Hello", "-n", "2", "--verify", "full", "--stats",
    ]);
    let output = piped
        .env_remove("NO_COLOR")
        .output()
        .expect("fastrun was built");
    assert!(output.status.success());
    let stderr = e2e::stderr(&output);
    assert!(
        !stderr.contains('\x1b') && stderr.contains("first token after"),
        "{stderr:?}"
    );
}

/// What a prompt on standard input yields.
fn through_pipe(prompt: &str, options: &[&str]) -> String {
    let mut child = fastrun(&[&bundle().to_string_lossy(), "--temp", "0"])
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("fastrun was built");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin
        .write_all(prompt.as_bytes())
        .expect("fastrun reads it");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{prompt:?}");
    String::from_utf8(output.stdout).expect("an answer is UTF-8")
}

fn once(options: &[&str]) -> String {
    let mut command = fastrun(&[&bundle().to_string_lossy(), "--temp", "0"]);
    command.args(options);
    succeed(command)
}

#[test]
fn a_piped_prompt_is_as_one_of_the_command_line() {
    let prompt = "Name a colour.";
    let given = once(&["-p", prompt, "-n", "20"]);
    assert_eq!(through_pipe(&format!("{prompt}\n"), &["-n", "20"]), given);
    let system = ["-s", "You are a pirate.", "-n", "20"];
    assert_ne!(
        through_pipe(prompt, &system),
        given,
        "the system prompt counts"
    );
    let mut nothing = fastrun(&[&bundle().to_string_lossy()]);
    nothing.stdin(Stdio::null());
    assert!(e2e::fail(nothing).contains("standard input holds no prompt"));
}

/// Whatever part of the answer is the stop string, and wherever its tokens' borders are.
#[test]
fn an_answer_ends_before_a_stop_string() {
    let options = ["--raw", "-p", "The three primary colours are", "-n", "24"];
    let whole = once(&options);
    let whole = whole.trim_end_matches('\n');
    let starts: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
    for window in starts.windows(6).step_by(7).take(6) {
        let stop = &whole[window[0]..window[5]];
        let cut = whole.find(stop).expect("it is a part");
        let mut with_stop = options.to_vec();
        with_stop.extend(["--stop", "no such text", "--stop", stop]);
        let answer = once(&with_stop);
        assert_eq!(
            answer.trim_end_matches('\n'),
            whole[..cut].trim_end_matches('\n'),
            "{stop:?}"
        );
    }
}

#[test]
fn penalties_reach_the_sampler() {
    let repeats = |options: &[&str]| {
        let mut all = vec!["--raw", "-p", "1, 1, 1, 1, 1, 1, 1, 1,", "-n", "6"];
        all.extend(options);
        once(&all).contains("1, 1")
    };
    assert!(repeats(&[]));
    for device in ["cpu", "reference"] {
        for name in [
            "--repeat-penalty",
            "--presence-penalty",
            "--frequency-penalty",
        ] {
            assert!(
                !repeats(&["--device", device, name, "20"]),
                "{device} {name}"
            );
        }
    }
    assert!(repeats(&["--repeat-penalty", "20", "--repeat-last-n", "0"]));
}

#[test]
fn answers_can_go_to_a_file_while_the_chat_is_on_the_terminal() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let file = home.path().join("answers.txt");
    let out = fs::File::create(&file).expect("the folder is writable");
    let mut chat = Terminal::start_with_output(chat(home.path(), &["-n", "8"]), out);
    chat.prompt();
    chat.type_line("Hello");
    chat.type_text(CTRL_D);
    assert_eq!(chat.end(), 0);
    let text = fs::read_to_string(&file).expect("it is there");
    assert!(
        !text.trim().is_empty() && !text.contains('\x1b') && !text.contains("> "),
        "{text:?}"
    );
}
