"""Runs all checks, one after the other: one line each, then a summary. Exit code 1 if one fails. One that can't be run
here is skipped, and fails where CI=true.

Arguments are parts of names: only checks whose names contain one of them are run.
"""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from typing import Awaitable, Callable, List

from . import (
    curl,
    devices,
    documentation,
    errors,
    groups,
    http3,
    lanes,
    marks,
    messages,
    poll_rules,
    polls,
    regions,
    rust,
    websockets,
)
from .deployment import Deployment, env
from .waiting import Skipped

Check = Callable[[Deployment], Awaitable[str]]
CHECK_TIMEOUT_S = 240
"""Only to end hangs."""

CHECKS: List[Check] = [
    documentation.the_worked_session_reads_and_writes_the_same,
    documentation.the_example_of_a_row_hash_is_right,
    messages.dispatch_answers_the_same_as_json_and_as_protobuf,
    messages.direct_messages_are_acked_shown_once_and_in_order_both_ways,
    messages.a_device_is_told_of_the_others_of_its_user,
    rust.python_and_rust_talk,
    messages.away_bob_resumes_by_cursor_and_gets_what_he_missed_once,
    messages.a_restarted_device_sends_what_waited_and_gets_what_it_missed,
    messages.a_burst_above_the_rate_limit_arrives_whole_and_in_order,
    messages.a_token_is_renewed_in_a_living_session,
    messages.another_region_gives_what_differs_and_takes_over,
    messages.a_resend_after_a_lost_ack_is_shown_once,
    messages.a_connection_survives_new_local_ports_while_messages_flow,
    lanes.pushes_come_on_the_control_lane_until_the_message_lane_is_used,
    lanes.tcp_carries_the_same_session,
    lanes.over_tcp_an_error_comes_before_the_close,
    websockets.websockets_carry_messages_both_ways,
    websockets.websockets_resume_by_cursor_after_a_cut,
    websockets.websockets_resend_after_a_lost_ack_and_it_is_shown_once,
    websockets.a_websocket_is_offered_by_dispatch_and_takes_the_place_of_quic,
    websockets.a_websocket_takes_parts_and_many_frames_in_a_message,
    websockets.a_largest_message_is_taken,
    websockets.a_websocket_without_the_subprotocol_is_refused,
    websockets.a_websocket_is_closed_with_what_was_wrong,
    websockets.a_websocket_refuses_what_a_connection_refuses_and_lives_on,
    polls.long_polls_carry_messages_both_ways,
    polls.short_polls_carry_messages_both_ways,
    polls.polls_resume_by_cursor_after_a_cut,
    polls.polls_resend_after_a_lost_ack_and_it_is_shown_once,
    polls.lost_answers_of_polls_are_given_again,
    polls.a_poll_and_a_quic_connection_of_an_install_replace_each_other,
    poll_rules.a_repeated_request_gets_the_same_answer_and_is_done_once,
    poll_rules.the_next_poll_ends_the_one_that_waits_with_an_empty_answer,
    poll_rules.a_wrong_number_is_refused_and_changes_nothing,
    poll_rules.a_session_of_polls_ends_by_delete_and_is_over_then,
    poll_rules.an_error_ends_a_session_of_polls,
    poll_rules.a_hello_that_is_refused_begins_no_session,
    poll_rules.what_polls_refuse_has_the_documented_status,
    http3.http3_polls_carry_messages_both_ways,
    http3.http3_polls_resume_and_resend,
    http3.http3_answers_that_are_lost_are_given_again,
    http3.one_session_is_polled_over_http3_and_over_tcp_by_turns,
    http3.the_next_poll_over_http3_ends_the_one_that_waits,
    http3.what_is_refused_over_http3_has_the_documented_status,
    http3.tcp_tells_where_http3_is,
    http3.a_client_of_http3_that_breaks_its_rules_is_told_so,
    curl.curl_polls_as_the_documentation_says,
    rust.a_group_that_rust_makes_is_used_by_python,
    marks.a_read_mark_is_told_to_the_other_and_to_own_devices,
    marks.a_signal_reaches_the_other_members_live_devices,
    marks.an_erased_body_is_not_given_any_more,
    marks.the_logs_of_a_conversation_are_told,
    devices.connected_devices_are_listed,
    devices.a_removed_device_is_ended_and_not_let_in_again,
    groups.a_group_of_one_is_used_by_the_others,
    groups.a_group_is_taken_to_a_region_that_may_not_know_it,
    errors.bad_tokens_are_refused,
    errors.a_version_that_is_not_known_is_refused,
    errors.a_frame_before_hello_closes_the_connection,
    errors.a_frame_on_the_wrong_lane_closes_the_connection,
    errors.a_frame_above_the_limit_closes_the_connection,
    errors.a_frame_that_is_none_closes_the_connection,
    errors.an_undefined_reference_closes_the_connection,
    errors.a_body_above_the_limit_is_refused_for_good,
    errors.the_newer_connection_of_an_install_replaces_the_older,
    regions.a_draining_region_sends_its_clients_elsewhere,
    regions.what_a_lost_region_acked_is_offered_to_another,
]


async def run(checks: List[Check]) -> int:
    """How many failed."""
    deployment, failed, skipped = env(), 0, 0
    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            seen = await asyncio.wait_for(check(deployment), CHECK_TIMEOUT_S)
            print(f"ok    {name}: {seen}", flush=True)
        except Skipped as why:
            skip = os.environ.get("CI") != "true"
            skipped, failed = skipped + skip, failed + (not skip)
            print(f"{'skip ' if skip else 'FAIL '} {name}: {why}", flush=True)
        except Exception:
            failed += 1
            print(f"FAIL  {name}\n{traceback.format_exc()}", flush=True)
        finally:
            await deployment.close()
    rest = f", {skipped} skipped" if skipped else ""
    print(f"interop: {len(checks) - failed - skipped} of {len(checks)} checks hold{rest}", flush=True)
    return failed


def main() -> int:
    wanted = sys.argv[1:]
    checks = [c for c in CHECKS if not wanted or any(part in c.__name__ for part in wanted)]
    if not checks:
        print(f"interop: no check is named like {wanted}", file=sys.stderr)
        return 2
    return 1 if asyncio.run(run(checks)) else 0


sys.exit(main())
