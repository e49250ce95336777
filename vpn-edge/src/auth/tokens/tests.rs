use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens");
    (dir, path)
}

fn role(tokens: &Tokens, token: &str) -> Option<Role> {
    tokens.caller(token).map(|caller| caller.role)
}

/// A time that is `seconds` after `start`.
fn after(start: Instant, seconds: f64) -> Instant {
    start + Duration::from_secs_f64(seconds)
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn member() -> Role {
    Role::Member {
        organisation: "acme".to_owned(),
    }
}

#[test]
fn a_token_names_its_caller_and_is_not_in_the_file() {
    let (_dir, path) = scratch();
    let admin = Tokens::add(&path, &Role::Admin).unwrap();
    let acme = Tokens::add(&path, &member()).unwrap();
    assert!(
        admin.starts_with("vpe_") && admin.len() == 4 + 43,
        "{}",
        admin.len()
    );
    let tokens = Tokens::load(&path).unwrap();
    assert_eq!(role(&tokens, &admin), Some(Role::Admin));
    assert_eq!(role(&tokens, &acme), Some(member()));
    assert_eq!(role(&tokens, "vpe_unknown"), None);
    assert_eq!(role(&tokens, ""), None);
    let text = std::fs::read_to_string(&path).unwrap();
    let caller = tokens.caller(&admin).unwrap();
    assert_eq!(caller.subject, format!("token:{}", &text[..8]));
    assert!(!text.contains(admin.as_str()) && !text.contains(acme.as_str()));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_changed_file_needs_no_restart() {
    let (_dir, path) = scratch();
    let first = Tokens::add(&path, &Role::Admin).unwrap();
    let tokens = Tokens::load(&path).unwrap();
    let second = Tokens::add(&path, &member()).unwrap();
    assert_eq!(role(&tokens, &second), Some(member()));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(role(&tokens, &first), None);
    let third = Tokens::add(&path, &Role::Admin).unwrap();
    assert_eq!(role(&tokens, &third), Some(Role::Admin));
    assert_eq!(role(&tokens, &second), None);
}

#[test]
fn a_line_added_by_hand_without_an_end_is_not_damaged() {
    let (_dir, path) = scratch();
    let line = format!("# by hand\n\n{} admin", "0f".repeat(32));
    std::fs::write(&path, &line).unwrap();
    Tokens::add(&path, &member()).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with(&format!("{line}\n")));
    let Contents { callers, invalid } = parse(&text);
    assert_eq!((callers.len(), invalid), (2, Vec::new()));
}

#[test]
fn a_bad_line_is_named_by_file_and_number_but_not_shown() {
    let hash = "0f".repeat(32);
    let table = [
        (
            "vpe_c2VjcmV0 admin".to_owned(),
            "a line starts with a token's hash, 64 hexadecimal digits; `vpn-edge token add` writes such lines",
        ),
        (
            hash.clone(),
            "after the hash comes `admin` or `organisation <name>`",
        ),
        (
            format!("{hash} organisation"),
            "after the hash comes `admin` or `organisation <name>`",
        ),
        (
            format!("{hash} admin acme"),
            "after the hash comes `admin` or `organisation <name>`",
        ),
        (
            format!("{hash} organisation -a"),
            "the organisation's name is not valid: use 1 to 64 letters, digits, '.', '_' and '-', and start with a letter or digit",
        ),
    ];
    for (line, reason) in table {
        let (_dir, path) = scratch();
        std::fs::write(&path, format!("# comment\n{line}\n")).unwrap();
        let expected = format!("{}, line 2: {reason}", path.display());
        assert_eq!(Tokens::load(&path).unwrap_err().to_string(), expected);
        let added = Tokens::add(&path, &Role::Admin).unwrap_err();
        assert_eq!(
            added.to_string(),
            expected,
            "nothing is added to a bad file"
        );
    }
}

#[test]
fn the_first_token_makes_the_folder_for_root_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vpn-edge/tokens");
    let token = Tokens::add(&path, &Role::Admin).unwrap();
    let tokens = Tokens::load(&path).unwrap();
    assert_eq!(role(&tokens, &token), Some(Role::Admin));
    let folder = std::fs::metadata(dir.path().join("vpn-edge")).unwrap();
    assert_eq!(folder.mode() & 0o777, 0o700);
}

#[test]
fn a_missing_file_is_an_error_that_says_how_to_make_it() {
    let (_dir, path) = scratch();
    let shown = path.display();
    assert_eq!(
        Tokens::load(&path).unwrap_err().to_string(),
        format!(
            "the token file {shown} is missing; `vpn-edge token add --file {shown} --admin` \
             creates it with a first token"
        )
    );
}

#[test]
fn a_missing_file_that_may_be_missing_counts_once_it_is_there() {
    let (_dir, path) = scratch();
    let tokens = Tokens::load_if_any(&path).unwrap();
    assert_eq!(role(&tokens, "vpe_unknown"), None);
    let admin = Tokens::add(&path, &Role::Admin).unwrap();
    assert_eq!(role(&tokens, &admin), Some(Role::Admin));
    std::fs::write(&path, "nonsense\n").unwrap();
    assert!(Tokens::load_if_any(&path).is_err());
}

#[test]
fn a_file_that_others_can_write_is_refused() {
    let (_dir, path) = scratch();
    Tokens::add(&path, &Role::Admin).unwrap();
    set_mode(&path, 0o660);
    let error = Tokens::load(&path).unwrap_err().to_string();
    assert!(
        error.ends_with(&format!("run chmod 600 {}", path.display())),
        "{error}"
    );
}

#[test]
fn a_token_for_an_impossible_organisation_is_refused() {
    let (_dir, path) = scratch();
    let role = Role::Member {
        organisation: "a b".to_owned(),
    };
    assert!(Tokens::add(&path, &role).is_err());
    assert!(!path.exists());
}

#[test]
fn a_removed_line_is_revoked_whatever_else_is_in_the_file() {
    for other in [
        &b"nonsense"[..],
        b"\xff\xfe",
        b"0f0f admin",
        &[b"f".repeat(64).as_slice(), b" admn"].concat(),
    ] {
        let (_dir, path) = scratch();
        let kept = Tokens::add(&path, &member()).unwrap();
        let kept_line = std::fs::read(&path).unwrap();
        let removed = Tokens::add(&path, &Role::Admin).unwrap();
        let tokens = Tokens::load(&path).unwrap();
        assert_eq!(role(&tokens, &removed), Some(Role::Admin));

        std::fs::write(&path, [other, b"\n", &kept_line].concat()).unwrap();
        assert_eq!(role(&tokens, &removed), None, "{other:?}");
        assert_eq!(role(&tokens, &kept), Some(member()), "{other:?}");
        let problem = tokens.problem().unwrap();
        assert!(problem.contains("line 1: "), "{problem}");
        assert!(!problem.contains("line 2: "), "{problem}");

        std::fs::write(&path, &kept_line).unwrap();
        assert_eq!(tokens.problem(), None);
    }
}

#[test]
fn a_comment_may_have_any_bytes() {
    let (_dir, path) = scratch();
    let line = format!("\n{} admin\n", "0f".repeat(32));
    std::fs::write(&path, [b"# caf\xe9", line.as_bytes()].concat()).unwrap();
    let added = Tokens::add(&path, &Role::Admin).unwrap();
    let tokens = Tokens::load(&path).unwrap();
    assert_eq!(role(&tokens, &added), Some(Role::Admin));
}

#[test]
fn invalid_lines_are_counted_and_not_shown() {
    let (_dir, path) = scratch();
    let tokens = Tokens::load_if_any(&path).unwrap();
    let hash = "0f".repeat(32);
    let text = format!("{hash} organisation -acme\n{}", "vpe_secret\n".repeat(7));
    std::fs::write(&path, text).unwrap();
    let problem = tokens.problem().unwrap();
    let shown = format!(
        "the token file {} has invalid lines, and grants nothing new until they are corrected: line 1: the organisation's name",
        path.display()
    );
    assert!(problem.starts_with(&shown), "{problem}");
    assert!(problem.contains("line 5: a line starts with"), "{problem}");
    assert!(problem.ends_with("; and 3 more"), "{problem}");
    for text in ["acme", "secret", &hash] {
        assert!(!problem.contains(text), "{problem}");
    }
}

#[test]
fn a_hash_in_two_lines_grants_nothing() {
    let hash = "0f".repeat(32);
    let (admin, acme) = (format!("{hash} admin"), format!("{hash} organisation acme"));
    let other_case = format!("{} admin", hash.to_uppercase());
    let invalid = format!("{hash} organisaton acme");
    for lines in [
        vec![&admin, &acme],
        vec![&acme, &admin],
        vec![&admin, &admin],
        vec![&admin, &other_case],
        vec![&admin, &invalid],
        vec![&invalid, &admin],
        vec![&admin, &acme, &admin],
    ] {
        let text = lines.iter().map(|line| format!("{line}\n"));
        let Contents { callers, invalid } = parse(&text.collect::<String>());
        assert!(callers.is_empty(), "{lines:?}: {callers:?}");
        let last = invalid.last().unwrap();
        assert_eq!(last.number, lines.len(), "{lines:?}");
        assert_eq!(
            last.reason,
            "its hash is in line 1 too, and neither counts; remove one of them"
        );
    }
}

/// A name broken over two lines is the case that leaves a valid line.
#[test]
fn a_slip_that_leaves_an_invalid_line_grants_nobody_more() {
    let (_dir, path) = scratch();
    for role in [Role::Admin, member(), Role::Admin] {
        Tokens::add(&path, &role).unwrap();
    }
    let text = std::fs::read(&path).unwrap();
    let mut slips = Vec::new();
    for at in 0..text.len() {
        let (before, rest) = text.split_at(at);
        slips.push([before, &rest[1..]].concat());
        for inserted in [b"\n", b" ", b"#", b"x", b"0", b"\xff"] {
            slips.push([before, inserted, rest].concat());
        }
    }
    let mut restrained = 0;
    for slip in slips {
        let tokens = Tokens::load(&path).unwrap();
        let mut known = tokens.known.into_inner().unwrap();
        let contents = parse(&String::from_utf8_lossy(&slip));
        if contents.invalid.is_empty() {
            continue;
        }
        let listed = contents.callers.len();
        known.read(&path, contents, version(&std::fs::metadata(&path).unwrap()));
        for (hash, caller) in &known.callers {
            let before = known.valid.get(hash).map(|before| &before.role);
            let slip = String::from_utf8_lossy(&slip);
            assert_eq!(Some(&caller.role), before, "{slip}");
        }
        restrained += listed - known.callers.len();
    }
    assert!(restrained > 0);
}

#[test]
fn a_line_added_beside_an_invalid_one_counts_once_that_is_corrected() {
    let (_dir, path) = scratch();
    Tokens::add(&path, &Role::Admin).unwrap();
    let tokens = Tokens::load(&path).unwrap();
    let added = Tokens::add(&path, &member()).unwrap();
    let valid = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{valid}nonsense\n")).unwrap();
    assert_eq!(role(&tokens, &added), None);
    std::fs::write(&path, valid).unwrap();
    assert_eq!(role(&tokens, &added), Some(member()));
}

#[test]
fn tokens_of_a_file_that_cannot_be_read_count_for_a_minute() {
    let (_dir, path) = scratch();
    let admin = Tokens::add(&path, &Role::Admin).unwrap();
    let tokens = Tokens::load(&path).unwrap();
    let start = Instant::now();
    let role = |seconds| {
        let caller = tokens.caller_at(&admin, after(start, seconds));
        caller.map(|caller| caller.role)
    };
    let problem = |seconds| tokens.problem_at(after(start, seconds));
    assert_eq!(problem(0.0), None);

    set_mode(&path, 0o660);
    let refusal = TokenFileError::WritableByOthers(path.clone());
    // The minute begins when the file is first found to be like this.
    for seconds in [10.0, 30.0, 69.9] {
        assert_eq!(role(seconds), Some(Role::Admin), "{seconds}");
        let expected = format!("{refusal}; its tokens are refused after 60 s");
        assert_eq!(problem(seconds), Some(expected));
    }
    for seconds in [70.0, 1000.0] {
        assert_eq!(role(seconds), None, "{seconds}");
        let expected = format!("{refusal}; its tokens are refused");
        assert_eq!(problem(seconds), Some(expected));
    }

    // Nothing but the mode changes.
    set_mode(&path, 0o600);
    assert_eq!(role(1001.0), Some(Role::Admin));
    assert_eq!(problem(1001.0), None);

    // Another failure has a minute of its own.
    set_mode(&path, 0o660);
    assert_eq!(role(1002.0), Some(Role::Admin));
    set_mode(&path, 0o600);
    assert_eq!(role(1003.0), Some(Role::Admin));
}

#[test]
fn a_minute_passes_also_while_nobody_calls() {
    let (_dir, path) = scratch();
    let admin = Tokens::add(&path, &Role::Admin).unwrap();
    let tokens = Tokens::load(&path).unwrap();
    let start = Instant::now();
    set_mode(&path, 0o660);
    assert!(tokens.problem_at(start).is_some());
    assert_eq!(tokens.caller_at(&admin, after(start, 60.0)), None);
}

#[test]
fn a_file_that_cannot_be_read_is_tried_once_a_second() {
    let (_dir, path) = scratch();
    let admin = Tokens::add(&path, &Role::Admin).unwrap();
    let tokens = Tokens::load(&path).unwrap();
    let start = Instant::now();
    set_mode(&path, 0o660);
    assert!(tokens.problem_at(start).is_some());
    set_mode(&path, 0o600);
    assert!(tokens.problem_at(after(start, 0.9)).is_some(), "not yet");
    assert!(tokens.caller_at(&admin, after(start, 0.9)).is_some());
    assert_eq!(tokens.problem_at(after(start, 1.0)), None);
}

#[test]
fn a_file_that_is_removed_while_it_cannot_be_read_knows_nobody_at_once() {
    let (_dir, path) = scratch();
    let admin = Tokens::add(&path, &Role::Admin).unwrap();
    let tokens = Tokens::load(&path).unwrap();
    let start = Instant::now();
    set_mode(&path, 0o660);
    assert!(tokens.caller_at(&admin, start).is_some());
    std::fs::remove_file(&path).unwrap();
    assert_eq!(tokens.caller_at(&admin, after(start, 0.1)), None);
}

#[test]
fn what_is_in_the_way_of_the_file_is_named() {
    let (_dir, path) = scratch();
    let admin = Tokens::add(&path, &Role::Admin).unwrap();
    let in_the_way: [(&str, &dyn Fn()); 3] = [
        ("it is not a regular file", &|| {
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        }),
        ("it is not a regular file", &|| {
            std::fs::create_dir(&path).unwrap();
        }),
        ("it has more than 4194304 bytes", &|| {
            std::fs::write(&path, "#".repeat(4_194_305)).unwrap();
            set_mode(&path, 0o600);
        }),
    ];
    let aside = path.with_extension("aside");
    for (reason, put) in in_the_way {
        let tokens = Tokens::load(&path).unwrap();
        std::fs::rename(&path, &aside).unwrap();
        put();
        assert_eq!(role(&tokens, &admin), Some(Role::Admin), "{reason}");
        let problem = tokens.problem().unwrap();
        assert!(problem.contains(reason), "{problem}");
        let error = Tokens::load(&path).unwrap_err().to_string();
        assert!(error.ends_with(reason), "{error}");
        if path.is_dir() {
            std::fs::remove_dir(&path).unwrap();
        }
        std::fs::rename(&aside, &path).unwrap();
    }
}

#[test]
fn a_missing_file_is_a_problem_unless_it_may_be_missing() {
    let (_dir, path) = scratch();
    assert_eq!(Tokens::load_if_any(&path).unwrap().problem(), None);
    Tokens::add(&path, &Role::Admin).unwrap();
    let needed = Tokens::load(&path).unwrap();
    let optional = Tokens::load_if_any(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(needed.problem().unwrap().contains("is missing"));
    assert_eq!(optional.problem(), None);
}

/// What `work` logs: the levels and messages.
fn logged(work: impl FnOnce()) -> String {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let subscriber = tracing_subscriber::fmt()
        .without_time()
        .with_ansi(false)
        .with_target(false)
        .with_writer(Mutex::new(writer))
        .finish();
    // With one subscriber in the process, a thread that has none and is first to
    // reach a log line decides for all that nobody listens to it.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    tracing::subscriber::with_default(subscriber, work);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn each_change_for_better_or_worse_is_logged_once() {
    let (_dir, path) = scratch();
    let admin = Tokens::add(&path, &Role::Admin).unwrap();
    let valid = std::fs::read_to_string(&path).unwrap();
    let tokens = Tokens::load(&path).unwrap();
    let start = Instant::now();
    let log = logged(|| {
        let look = |seconds: [f64; 3]| {
            for seconds in seconds {
                tokens.caller_at(&admin, after(start, seconds));
                tokens.problem_at(after(start, seconds));
            }
        };
        set_mode(&path, 0o660);
        look([0.0, 1.0, 59.0]);
        look([60.0, 61.0, 100.0]);
        set_mode(&path, 0o600);
        look([101.0, 102.0, 103.0]);
        std::fs::write(&path, format!("{valid}vpe_secret\n")).unwrap();
        look([104.0, 105.0, 106.0]);
        std::fs::remove_file(&path).unwrap();
        look([107.0, 108.0, 109.0]);
    });
    let lines: Vec<&str> = log.lines().map(str::trim).collect();
    let expected = [
        ("ERROR", "its tokens are refused after 60 s"),
        ("ERROR", "until it can be read"),
        ("INFO", "the token file can be read again"),
        ("ERROR", "has invalid lines"),
        ("ERROR", "the tokens of the file are refused"),
    ];
    assert_eq!(lines.len(), expected.len(), "{log}");
    for (line, (level, message)) in lines.into_iter().zip(expected) {
        assert!(line.starts_with(level) && line.contains(message), "{log}");
    }
    assert!(!log.contains("secret"), "{log}");
}
