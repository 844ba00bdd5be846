"""Schedules that once found a bug, as they were made smaller. Each name says what must hold."""

import pytest
from model_run import play

CASES = {}

# StreamWriter.sync lost the other full segments: neither fsynced nor closed.
CASES["a_failed_fsync_of_one_full_segment_leaves_no_other_open"] = (
    {"clients": 1, "receivers": ["jsonl"], "remote": False, "batch": 20, "seed": 631448660},
    [
        ["ship", 22786, 63063, 48924, 28289, 12980],
        ["work", 34585, 56884, 27832, 35255, 54380],
        ["append", 49446, 54662, 29897, 14189, 41420],
        ["fault", 10785, 52716, 63571, 47580, 12469],
        ["close", 56834, 16221, 39323, 37912, 29536],
    ],
)

# The rename into view had happened; the writer began another stream, the first one looked killed.
CASES["a_directory_that_cannot_be_fsynced_gives_no_second_stream"] = (
    {"clients": 1, "receivers": ["jsonl", "model"], "remote": False, "batch": 20, "seed": 883244851},
    [
        ["start", 57216, 56505, 49480, 18090, 52640],
        ["fault", 19320, 13833, 33509, 19042, 28404],
        ["start", 64968, 58133, 37882, 22693, 30500],
        ["fault", 30313, 25642, 32093, 28229, 26335],
        ["append", 27881, 28233, 18106, 25052, 38206],
        ["append", 49187, 18107, 18604, 1976, 32550],
    ],
)

# The hidden directory's name was taken for ever: every event was dropped.
CASES["a_writer_starts_when_space_returns_though_its_live_file_could_not_be_made"] = (
    {"clients": 1, "receivers": ["model"], "remote": False, "batch": 20, "seed": 811526309},
    [
        ["append", 35937, 60910, 39333, 63699, 13251],
        ["kill", 43850, 37276, 11747, 3204, 20794],
        ["append", 40471, 65262, 30222, 49655, 41748],
        ["start", 9341, 11997, 52178, 40757, 3957],
        ["start", 30420, 15158, 42769, 16861, 14627],
        ["start", 11197, 24064, 51141, 5762, 32256],
        ["ship", 62563, 21223, 25247, 12052, 42762],
        ["mood", 52227, 32451, 20754, 7982, 15649],
        ["close", 58262, 25311, 13351, 56168, 3659],
        ["work", 9270, 50332, 34938, 31930, 31908],
        ["close", 3744, 60729, 27693, 62425, 39492],
        ["ship", 36420, 37588, 936, 40471, 53940],
        ["fault", 13431, 57985, 20923, 53586, 2418],
        ["start", 30574, 24082, 22246, 2045, 4947],
        ["work", 47315, 14229, 47150, 36999, 14067],
        ["start", 27317, 51412, 11406, 16614, 2237],
        ["close", 47380, 12980, 59924, 17551, 41881],
        ["work", 23647, 54721, 40225, 31866, 36949],
        ["kill", 45121, 6146, 56091, 40120, 1798],
        ["append", 45649, 62582, 42436, 47121, 50858],
        ["append", 4912, 25076, 11632, 59006, 65414],
        ["append", 42084, 43047, 26853, 13633, 29546],
        ["append", 3186, 30606, 23600, 29832, 29232],
        ["append", 52292, 21374, 41763, 9940, 14885],
        ["append", 49176, 17433, 17797, 65151, 1222],
        ["append", 34812, 22546, 2429, 59416, 15822],
    ],
)

# With durability process a tick closed them without fsync, and flush() said that all was durable.
CASES["flush_covers_full_segments_that_a_tick_closed"] = (
    {"clients": 2, "receivers": ["tb"], "remote": False, "batch": 20, "seed": 58112160},
    [
        ["append", 45796, 27674, 18450, 8214, 40434],
        ["tick", 64287, 43067, 41360, 53077, 30725],
        ["sync", 36960, 58870, 24722, 43894, 13635],
        ["power", 1364, 4107, 53482, 38571, 40320],
    ],
)

# The shipper said done and never wrote a new .end: the run ran for ever.
CASES["a_void_end_is_not_taken_for_the_end_of_the_stream"] = (
    {"clients": 1, "receivers": ["home", "jsonl"], "remote": True, "batch": 1, "seed": 998252654},
    [
        ["work", 44416, 4782, 57313, 30925, 14854],
        ["append", 53823, 47569, 17112, 47642, 62556],
        ["undertake", 45878, 59550, 48392, 50067, 21306],
        ["clock", 29183, 50650, 52423, 28294, 57432],
        ["work", 60333, 37658, 65252, 50412, 55430],
        ["undertake", 52074, 24096, 42673, 12501, 14080],
    ],
)

# After a crash its patience began anew, and the run's state was written between its bytes.
CASES["a_named_batch_with_a_loss_in_it_comes_first_again"] = (
    {"clients": 1, "receivers": ["home", "tb"], "remote": False, "batch": 3, "seed": 1048341280},
    [
        ["append", 50123, 54110, 26827, 4154, 2707],
        ["flip", 1974, 30154, 61433, 7995, 33863],
        ["ship", 38582, 26069, 51542, 15749, 43269],
        ["clock", 16432, 34892, 62541, 55649, 28480],
        ["ship", 58609, 42656, 2926, 57886, 43561],
        ["work", 14565, 52046, 31930, 33719, 31227],
        ["mood", 56689, 37039, 42562, 29001, 35835],
        ["clock", 58793, 5154, 55207, 7747, 7184],
        ["work", 34683, 62065, 19909, 35819, 53305],
    ],
)

# Another stream's batch went into the file first: the batch stood there twice.
CASES["a_named_batch_that_is_away_is_waited_for"] = (
    {"clients": 2, "receivers": ["home", "jsonl", "tb"], "remote": False, "batch": 3, "seed": 79008401},
    [
        ["append", 15857, 5491, 2144, 21940, 53894],
        ["mood", 57697, 44952, 39597, 15289, 56562],
        ["rsync", 56197, 64598, 33897, 14945, 40107],
        ["work", 42884, 5354, 9061, 36040, 57824],
        ["work", 49105, 5010, 45861, 54241, 19278],
        ["power", 32773, 7137, 63532, 33985, 44533],
        ["work", 49918, 24681, 4602, 45501, 64387],
        ["start", 47850, 43504, 13719, 57532, 32162],
    ],
)

# Two reasons to wait took turns for ever.
CASES["a_file_cut_below_the_cursor_does_not_block_what_follows"] = (
    {"clients": 2, "receivers": ["home", "jsonl"], "remote": False, "batch": 4, "seed": 467117291},
    [
        ["append", 16817, 21891, 49827, 39134, 53390],
        ["close", 49603, 12978, 16018, 40415, 29789],
        ["append", 22026, 27804, 24779, 25530, 23770],
        ["work", 47270, 19805, 22935, 10649, 4790],
        ["append", 6261, 19855, 42384, 3523, 46577],
        ["append", 18093, 42844, 11247, 35493, 19489],
        ["kill", 64579, 13845, 27740, 10946, 32577],
        ["start", 6878, 53844, 47923, 56976, 42807],
        ["append", 14641, 46862, 28054, 6522, 36322],
        ["cut", 4896, 27486, 25674, 51835, 29436],
    ],
)

# ValueError out of a strict zip ended the whole shipper.
CASES["a_stream_without_segments_does_not_end_the_shipper"] = (
    {"clients": 1, "receivers": ["model"], "remote": False, "batch": 4, "seed": 5},
    [
        ["start", 0, 0, 1, 0, 3],
        ["append", 0, 3, 0, 0, 0],
        ["kill", 0, 0, 0, 0, 0],
        ["remove", 0, 0, 0, 0, 0],
        ["ship", 0, 0, 3, 0, 0],
    ],
)

# The reader's short cut took what it had seen, but not read, for read.
CASES["what_comes_while_a_full_batch_waits_is_read"] = (
    {"clients": 2, "receivers": ["home", "model"], "remote": False, "batch": 3, "seed": 384502194},
    [
        ["work", 4166, 1349, 52254, 34634, 18178],
        ["start", 53394, 2185, 16069, 26195, 64186],
        ["append", 41545, 30353, 32521, 34260, 2099],
        ["full", 65020, 62843, 5857, 4582, 41183],
        ["work", 63744, 31660, 41990, 45861, 64758],
    ],
)

# At the server, with a crash in flight.
CASES["a_cut_below_a_named_batch"] = (
    {"clients": 1, "receivers": ["jsonl"], "remote": False, "batch": 20, "seed": 463887275},
    [
        ["append", 64732, 28784, 21768, 23799, 24109],
        ["power", 49520, 26426, 6053, 7428, 1025],
        ["append", 50809, 60801, 8321, 52158, 22976],
        ["mood", 30581, 33148, 41106, 5493, 32074],
        ["ship", 50970, 20469, 40555, 38669, 64233],
        ["work", 12918, 7871, 42457, 40652, 38223],
        ["cut", 6398, 56874, 5510, 32382, 36121],
        ["work", 53532, 26079, 25366, 55505, 10264],
        ["work", 28483, 14646, 40688, 51137, 27544],
    ],
)

# A fsync had failed; the next look found nothing to append, and said done.
CASES["what_a_session_finds_complete_at_the_target_is_fsynced_there"] = (
    {"clients": 1, "receivers": ["jsonl", "model"], "remote": False, "batch": 3, "seed": 976907906},
    [
        ["ship", 16509, 40245, 207, 33107, 65011],
        ["append", 43178, 36176, 26798, 15943, 33321],
        ["close", 47622, 51808, 33354, 59558, 43086],
        ["ship", 8371, 5623, 63105, 54271, 39958],
        ["append", 4004, 9295, 41785, 23830, 63772],
        ["ship", 29377, 54394, 10307, 13980, 7401],
        ["work", 1231, 52939, 52764, 23798, 37969],
        ["work", 43410, 1078, 47821, 13335, 64885],
        ["close", 31352, 29103, 50761, 6138, 55039],
        ["fault", 5018, 9756, 32745, 12029, 18802],
        ["append", 55290, 46436, 55922, 26238, 2289],
        ["ship", 58618, 36176, 63429, 20884, 51267],
    ],
)

# A power cut took the seals: the server waited a day for each.
CASES["segments_that_lost_only_their_seals_are_not_waited_for"] = (
    {"clients": 1, "receivers": ["tb"], "remote": False, "batch": 20, "seed": 515969266},
    [
        ["append", 3026, 257, 61197, 5526, 62202],
        ["copy", 291, 5193, 16761, 31120, 55483],
        ["append", 29631, 50082, 6280, 14775, 54148],
        ["close", 3053, 59176, 2940, 47939, 628],
        ["append", 62151, 50108, 20783, 5074, 54148],
        ["append", 30125, 10678, 12961, 12473, 51443],
        ["power", 47774, 41121, 32533, 1281, 28571],
        ["append", 41794, 21529, 57681, 10180, 41612],
        ["append", 21154, 55551, 46220, 39229, 52128],
        ["append", 4993, 58751, 3493, 20460, 59971],
        ["close", 65348, 64788, 25306, 42737, 59032],
        ["append", 34160, 24541, 53460, 8044, 36565],
        ["flip", 35439, 64270, 56149, 19022, 1253],
    ],
)

# Nothing may stay open after a writer's failed creation.
CASES["a_full_disk_under_a_writer"] = (
    {"clients": 1, "receivers": ["tb"], "remote": False, "batch": 1, "seed": 35573259},
    [
        ["ship", 21061, 50663, 1285, 20189, 57707],
        ["append", 22497, 61832, 23161, 9220, 49345],
        ["start", 39150, 21157, 24588, 4165, 279],
        ["work", 33708, 25021, 32995, 12242, 61796],
        ["append", 40826, 18255, 15434, 18255, 18415],
        ["append", 56910, 20303, 40945, 16367, 16684],
        ["start", 27297, 58368, 29676, 57352, 27845],
        ["ship", 12778, 22433, 56224, 13234, 14261],
        ["fault", 51852, 63487, 55379, 43186, 26678],
        ["start", 10294, 4491, 10331, 63776, 39731],
        ["tick", 30160, 60316, 35140, 65129, 9380],
    ],
)

# EACCES in the target itself was taken for that of a directory above it.
CASES["a_site_whose_name_the_target_could_not_fsync_is_not_shipped"] = (
    {"clients": 2, "receivers": ["home", "jsonl"], "remote": False, "batch": 3, "seed": 333965491},
    [
        ["ship", 34199, 51575, 27705, 28457, 36142],
        ["work", 28884, 58523, 53456, 1710, 47249],
        ["append", 42423, 7065, 420, 59167, 12895],
        ["ship", 38660, 38286, 11145, 8639, 17013],
        ["ship", 52807, 39852, 40258, 11696, 52815],
        ["fault", 3077, 49444, 31014, 61159, 53681],
        ["work", 8073, 1905, 50343, 14162, 32693],
        ["fault", 58310, 38907, 47355, 4644, 25646],
        ["start", 18982, 62170, 27339, 59788, 58652],
        ["append", 41577, 21081, 19065, 3792, 60002],
        ["ship", 17792, 2036, 33343, 49129, 51619],
    ],
)

# The model took it for killed.
CASES["a_run_end_in_the_file_counts_though_its_writer_was_killed_in_its_fsync"] = (
    {"clients": 1, "receivers": ["home", "jsonl", "model"], "remote": False, "batch": 3, "seed": 795461766},
    [
        ["work", 39198, 3467, 52518, 39294, 40271],
        ["append", 38146, 8455, 43097, 26617, 42355],
        ["ship", 17888, 21591, 25498, 4854, 60934],
        ["work", 22205, 26637, 9578, 15767, 61106],
        ["ship", 38319, 18220, 17072, 17621, 7020],
        ["work", 30578, 31311, 30423, 48122, 1743],
        ["sync", 18666, 13629, 32098, 14023, 25015],
        ["append", 21080, 25403, 63480, 60961, 63101],
        ["kill", 36532, 33606, 53131, 29253, 8193],
        ["fault", 25845, 27778, 29768, 32073, 4306],
        ["sync", 38703, 51892, 54917, 42525, 6490],
        ["close", 15837, 33054, 7876, 54287, 11585],
        ["append", 44019, 56389, 15996, 1189, 7261],
        ["start", 17200, 8133, 63851, 8024, 56931],
        ["kill", 8806, 14227, 886, 12583, 42814],
    ],
)

# It was cut away after the shipper had read it: its seq came back with another event, which was a fork.
CASES["a_line_whose_fsync_failed_stays"] = (
    {"clients": 2, "receivers": ["model"], "remote": False, "batch": 1, "seed": 403399546},
    [
        ["append", 8976, 52451, 26905, 12191, 18735],
        ["full", 18776, 59247, 42084, 18561, 52143],
        ["start", 18631, 64904, 29600, 33690, 25191],
        ["work", 1214, 29895, 27547, 56088, 39539],
        ["start", 50714, 29429, 21085, 1193, 37915],
        ["ship", 44897, 35440, 51280, 24896, 46634],
        ["start", 48735, 4701, 56981, 55012, 7919],
        ["fault", 1946, 39398, 35211, 56147, 4183],
        ["work", 33756, 6202, 36035, 27911, 13019],
        ["ship", 3586, 33901, 44665, 36586, 47493],
        ["append", 26102, 9708, 39999, 22003, 3026],
        ["fault", 41850, 2208, 64972, 59877, 36653],
        ["full", 29069, 38268, 41508, 18564, 16508],
        ["copy", 35313, 36932, 57721, 52407, 51402],
        ["work", 51724, 8927, 37454, 46256, 1366],
        ["ship", 45720, 56626, 47019, 42991, 34993],
        ["append", 50850, 28897, 45803, 44765, 36136],
        ["ship", 37160, 32958, 55542, 51716, 38794],
    ],
)

# Nobody wrote its .end: the header says where it was born. The run ran for ever.
CASES["a_killed_stream_is_ended_though_its_only_header_is_damaged"] = (
    {"clients": 2, "receivers": ["home", "model", "tb"], "remote": False, "batch": 4, "seed": 176648815},
    [
        ["append", 29638, 11432, 62755, 1267, 31648],
        ["work", 50169, 44840, 14824, 25083, 11357],
        ["kill", 59654, 10034, 45896, 23792, 46913],
        ["flip", 52848, 1178, 17234, 53176, 31675],
    ],
)

# It asked the kernel to fsync /proc/self/fd.
CASES["a_process_that_knows_nothing_yet_fsyncs_nothing_outside_of_the_target"] = (
    {"clients": 1, "receivers": ["home", "model"], "remote": True, "batch": 3, "seed": 705171406},
    [
        ["append", 43568, 19091, 27616, 29994, 31018],
        ["fault", 7681, 15140, 39776, 44620, 12847],
        ["append", 31463, 61357, 11476, 37434, 1276],
        ["clock", 23689, 64450, 37152, 12195, 23969],
        ["resume", 47638, 47712, 56184, 53839, 44197],
        ["append", 9892, 4866, 28334, 30786, 29657],
        ["append", 13971, 25945, 2614, 13444, 20943],
        ["mood", 43274, 47047, 1342, 17964, 39196],
        ["clock", 6123, 43670, 24114, 43374, 52437],
        ["clock", 45596, 21710, 6866, 22741, 44543],
        ["ship", 48812, 40583, 14578, 4385, 28516],
        ["cut", 19646, 20911, 44615, 326, 50745],
        ["work", 2310, 28718, 36582, 34221, 23202],
        ["ship", 9241, 52219, 51840, 12266, 12133],
        ["work", 38077, 24125, 51803, 36721, 58464],
        ["mood", 62355, 40316, 8911, 43477, 47803],
        ["sync", 45553, 52738, 38965, 38889, 9593],
        ["resume", 48739, 17485, 45046, 61503, 55943],
        ["append", 64042, 32700, 13303, 51399, 44558],
        ["start", 53385, 61260, 35963, 28941, 3702],
        ["fault", 61796, 24663, 45948, 1687, 9230],
        ["work", 23362, 27902, 9023, 705, 43528],
        ["sync", 39143, 22732, 64450, 22332, 13380],
        ["work", 30663, 27941, 53589, 43372, 12347],
        ["start", 3078, 38018, 48116, 27126, 7152],
        ["work", 18367, 44301, 64926, 63660, 10032],
        ["work", 36637, 12198, 13596, 60084, 8632],
        ["clock", 21476, 63680, 29669, 62689, 34599],
        ["ship", 32476, 23750, 37250, 25324, 18611],
        ["ship", 6954, 51042, 61565, 1262, 64700],
    ],
)


# A stream whose end stood before what was read of it was waited for again and again, though nothing of it was missing.
CASES["an_ended_stream_of_which_a_part_was_removed_comes_to_rest"] = (
    {"clients": 1, "receivers": ["home"], "remote": False, "batch": 3, "seed": 646808690},
    [
        ["start", 25693, 12837, 48010, 10501, 19803],
        ["close", 22732, 1556, 31559, 53248, 35448],
        ["move", 60848, 40202, 64212, 65195, 53174],
        ["append", 58218, 60276, 5275, 50478, 51079],
        ["kill", 32444, 56341, 49518, 56560, 62767],
        ["append", 14168, 32701, 50206, 29702, 63662],
        ["work", 12891, 60898, 23376, 5053, 32508],
        ["remove", 59577, 5189, 43895, 33775, 5772],
    ],
)


# The batch was delivered without the bad line, the ack was lost, and the line healed before it was delivered again.
CASES["a_line_that_heals_while_its_batch_is_in_flight_comes_late"] = (
    {"clients": 1, "receivers": ["model"], "remote": False, "batch": 20, "seed": 1051948688},
    [
        ["mood", 21749, 13277, 37914, 62285, 41772],
        ["append", 39122, 32809, 64503, 46682, 23409],
        ["rsync", 57346, 37937, 8449, 16664, 58972],
        ["work", 52388, 63, 60931, 25671, 1743],
        ["flip", 5882, 13385, 59263, 2717, 6751],
        ["work", 34297, 32917, 65496, 42829, 44329],
        ["clock", 6797, 29805, 40910, 34968, 25247],
        ["mood", 21167, 15007, 7921, 1982, 61139],
        ["work", 39649, 57841, 18021, 50320, 21502],
    ],
)

# The same, of a segment that was removed and comes back.
CASES["a_segment_that_comes_back_while_the_next_ones_batch_is_in_flight"] = (
    {"clients": 2, "receivers": ["jsonl", "model", "tb"], "remote": False, "batch": 1, "seed": 757751044},
    [
        ["append", 62722, 36196, 51214, 34798, 3553],
        ["ship", 24030, 24947, 62495, 50387, 20642],
        ["remove", 48334, 19482, 44349, 1358, 53534],
        ["work", 38338, 15599, 12228, 20738, 8730],
        ["power", 34952, 57497, 41635, 61352, 65507],
        ["clock", 13175, 60976, 2675, 35831, 10695],
        ["mood", 55453, 62066, 52501, 15051, 53819],
        ["work", 52540, 56071, 30179, 40103, 2991],
    ],
)

# With "always", what went into a segment that the keeper had just begun was acknowledged before the segment's name was on disk.
CASES["a_segment_begun_by_age_has_its_name_on_disk_before_an_event_in_it_is_acknowledged"] = (
    {"clients": 2, "receivers": ["home"], "remote": False, "batch": 3, "seed": 524576574},
    [
        ["append", 13458, 42192, 60998, 7687, 62409],
        ["clock", 64414, 29327, 35431, 39211, 37793],
        ["tick", 55210, 7774, 14628, 34327, 54969],
        ["append", 46645, 56566, 59816, 59131, 16037],
        ["power", 28944, 62449, 25628, 6747, 55642],
    ],
)

# The mirror beside the file is on disk with each commit: a power cut before the cursors are put back changes nothing.
CASES["a_power_cut_and_older_cursors_with_a_mirror_beside_the_file"] = (
    {"clients": 1, "receivers": ["jsonl", "tb"], "remote": False, "batch": 1, "seed": 13519722},
    [
        ["append", 2726, 15943, 12618, 44113, 59916],
        ["ship", 62051, 14847, 1349, 39889, 43610],
        ["append", 43815, 64647, 64979, 30923, 26828],
        ["work", 34084, 38147, 60301, 11467, 18932],
        ["snapshot", 31028, 16038, 8162, 34822, 50839],
        ["ship", 49416, 63133, 6815, 12215, 16185],
        ["work", 16224, 47231, 35236, 27964, 17954],
        ["power", 38748, 61628, 21033, 41056, 62567],
        ["power", 10065, 49329, 9160, 36837, 46298],
        ["rewind", 4892, 5699, 50588, 57293, 18248],
        ["append", 29840, 15249, 1696, 51128, 24200],
    ],
)


@pytest.mark.parametrize("name", CASES)
def test_schedule(name):
    play(*CASES[name])
