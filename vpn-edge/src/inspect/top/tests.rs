use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;

fn look(port: u16, tenant: u128, counters: Counters) -> Look {
    Look {
        port,
        tenant: Uuid::from_u128(tenant << 96),
        mode: "xdp",
        sessions: 2,
        flows: 1,
        grace: None,
        counters,
    }
}

fn counters(packets: u64, drops: &[(DropReason, u64)]) -> Counters {
    let mut counters = Counters {
        ingress_packets: packets,
        ingress_bytes: packets * 1_000,
        egress_packets: 2 * packets,
        egress_bytes: 2 * packets * 1_000,
        handshakes: packets / 100,
        ..Counters::default()
    };
    for &(reason, count) in drops {
        counters.drops[reason as usize] = count;
    }
    counters
}

#[test]
fn rates_are_what_came_to_be_between_two_looks_by_the_time_between() {
    let before = [look(
        31_001,
        1,
        counters(
            1_000,
            &[(DropReason::Mac1, 100), (DropReason::PacketRate, 5)],
        ),
    )];
    let after = [look(
        31_001,
        1,
        counters(
            2_000,
            &[(DropReason::Mac1, 110), (DropReason::PacketRate, 35)],
        ),
    )];
    let tenants = between(&before, &after, Duration::from_secs(2));
    let expected = Tenant {
        port: 31_001,
        tenant: after[0].tenant,
        mode: "xdp",
        ingress: Traffic {
            bits: 4_000_000.0,
            packets: 500.0,
        },
        egress: Traffic {
            bits: 8_000_000.0,
            packets: 1_000.0,
        },
        sessions: 2,
        flows: 1,
        handshakes: 5.0,
        grace: None,
        drops: 20.0,
        reason: Some(DropReason::PacketRate),
    };
    assert_eq!(tenants, [expected]);
}

#[test]
fn a_tenant_that_was_not_there_before_has_done_nothing_yet() {
    let busy = counters(1_000, &[(DropReason::Mac1, 100)]);
    let before = [look(31_001, 1, busy), look(31_003, 3, busy)];
    // The first port went to another tenant, the second is new, and the third
    // is gone.
    let after = [look(31_001, 9, busy), look(31_002, 2, busy)];
    let tenants = between(&before, &after, Duration::from_secs(1));
    assert_eq!(tenants.len(), 2);
    for tenant in tenants {
        assert_eq!(tenant.ingress, Traffic::default());
        assert_eq!((tenant.drops, tenant.reason), (0.0, None));
    }
}

#[test]
fn counters_that_start_anew_are_no_traffic() {
    let before = [look(31_001, 1, counters(1_000, &[]))];
    let after = [look(31_001, 1, counters(10, &[]))];
    let tenants = between(&before, &after, Duration::from_secs(1));
    assert_eq!(tenants[0].ingress, Traffic::default());
}

/// Tenants that differ in each of the things to sort by.
fn tenants() -> Vec<Tenant> {
    let nothing: Vec<Look> = [(31_001, 1), (31_002, 0xabcd_ef01), (31_003, 3)]
        .map(|(port, tenant)| look(port, tenant, Counters::default()))
        .into();
    let mut after = nothing.clone();
    after[0].counters = Counters {
        egress_bytes: 150_000_000,
        egress_packets: 110_000,
        handshakes: 2,
        ..counters(0, &[])
    };
    after[1].counters = Counters {
        ingress_bytes: 40_000_000,
        ingress_packets: 30_000,
        ..counters(0, &[(DropReason::Mac1, 12_345), (DropReason::Fragment, 1)])
    };
    after[1].mode = "tc";
    after[1].grace = Some(Duration::from_secs(61));
    after[2].counters.handshakes = 250;
    after[2].mode = "closed";
    between(&nothing, &after, Duration::from_secs(1))
}

fn press(screen: &mut Screen, keys: &str) -> bool {
    keys.chars().fold(true, |_, key| {
        screen.press(KeyEvent::from(KeyCode::Char(key)))
    })
}

fn drawn(screen: &mut Screen, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    terminal.backend().to_string()
}

fn screen() -> Screen {
    let mut screen = Screen::default();
    screen.show(tenants());
    screen
}

#[test]
fn the_screen_has_totals_tenants_and_keys() {
    insta::assert_snapshot!(drawn(&mut screen(), 110, 8));
}

#[test]
fn a_narrow_screen_leaves_columns_out_and_cuts_no_number() {
    insta::assert_snapshot!(drawn(&mut screen(), 80, 8));
    for width in 5..200 {
        let columns = columns(width);
        let taken: u16 = columns.iter().map(|&at| COLUMNS[at].1).sum();
        assert!(
            taken + columns.len() as u16 - 1 <= width,
            "{width}: {columns:?}"
        );
    }
    assert_eq!(columns(5), [0]);
    assert_eq!(columns(120).len(), COLUMNS.len());
}

#[test]
fn a_screen_without_tenants_is_not_empty() {
    let mut screen = Screen::default();
    screen.show(Vec::new());
    insta::assert_snapshot!(drawn(&mut screen, 80, 5));
}

#[test]
fn keys_sort_by_what_they_say() {
    let mut screen = screen();
    for (key, ports) in [
        ('r', [31_001, 31_002, 31_003]),
        ('i', [31_002, 31_001, 31_003]),
        ('o', [31_001, 31_002, 31_003]),
        ('d', [31_002, 31_001, 31_003]),
        ('h', [31_003, 31_001, 31_002]),
    ] {
        assert!(press(&mut screen, &key.to_string()));
        let shown: Vec<u16> = screen.tenants.iter().map(|tenant| tenant.port).collect();
        assert_eq!(shown, ports, "{key}");
    }
}

#[test]
fn tenants_beyond_the_screen_are_scrolled_to() {
    let mut screen = screen();
    // Room for one of three.
    for (keys, first) in [
        ("", "31001"),
        ("jj", "31003"),
        ("jjj", "31003"),
        ("k", "31002"),
    ] {
        assert!(press(&mut screen, keys) || keys.is_empty());
        let drawn = drawn(&mut screen, 110, 5);
        let row = drawn.lines().nth(3).unwrap();
        assert!(row.contains(first), "{keys}: {drawn}");
    }
}

#[test]
fn the_selection_stays_within_the_list_as_it_shrinks() {
    let mut screen = screen();
    press(&mut screen, "jj");
    screen.show(tenants().into_iter().take(1).collect());
    assert_eq!(screen.table.selected(), Some(0));
    screen.show(Vec::new());
    assert_eq!(screen.table.selected(), None);
}

#[test]
fn q_escape_and_control_c_quit() {
    for key in [
        KeyEvent::from(KeyCode::Char('q')),
        KeyEvent::from(KeyCode::Esc),
        KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL),
    ] {
        assert!(!screen().press(key), "{key:?}");
    }
    for key in ['c', 'x', 'j', 'G'] {
        assert!(screen().press(KeyEvent::from(KeyCode::Char(key))), "{key}");
    }
}

#[test]
fn what_is_no_terminal_is_told_what_to_use() {
    // Nothing is pinned comes first.
    let folder = tempfile::tempdir().unwrap();
    let args = TopArgs {
        selection: Selection::default(),
        watch: WatchArgs::default(),
        maps: BpffsArgs {
            bpffs: folder.path().into(),
        },
    };
    let said = run(&args).unwrap_err().to_string();
    assert!(said.starts_with("nothing is pinned"), "{said}");
}
