"""A world as Inform 6 source text, in one of two styles: the library's own sentences, or answers of a few words.

    prose    Cellar                                terse    at cellar see chest closed lamp go north red
             You can see a chest (which is closed)
             and a lamp here.
             You can go north (the red door).

In both the score is the library's: `scored` things and rooms. The game is won, and ends, with the last point.
"""

from __future__ import annotations

from envs.adventures.worlds import BACK, LAMP, WAYS, World

STYLES = ("terse", "prose")

TERSE_WORDS = (
    *("at", "see", "go", "dark", "open", "closed", "on", "have", "nothing", "no", "taken", "dropped", "lit", "out", "unlocked", "won"),
    *("find", "visit", *WAYS, "take", "unlock", "door", "turn", "look", "inventory", "drop", "close", "off", "key", LAMP),
)  # fmt: skip
"""Words of terse games beside the names of rooms and things."""

_HEAD = """\
!% -~S
!% $OMIT_UNUSED_ROUTINES=1
Constant Story "";
Constant Headline "";
Constant NO_PLACES;
Constant MAX_CARRIED 100;
Constant MAX_SCORE {total};
Constant OBJECT_SCORE {thing_points};
Constant ROOM_SCORE {room_points};
Replace DrawStatusLine;
{replaced}
Include "Parser";
{messages}
Include "VerbLib";
Class Room;
Class Gate
  with side_a 0, side_b 0, way_a 0, way_b 0, hue 0,
    door_to [; if (real_location == self.side_a) return self.side_b; return self.side_a; ],
    door_dir [; if (real_location == self.side_a) return self.way_a; return self.way_b; ],
    after [; Unlock: give self open; print "{unlocked}^"; rtrue; Lock: give self ~open; ],
  has door lockable locked openable static scenery;
Class Coffer
  {coffer}
  has container openable static;
"""

_TAIL = """\
[ UnlockAnySub;
    if (noun ofclass Gate && noun.with_key in player) <<Unlock noun (noun.with_key)>>;
    L__M(##Unlock, 3, noun);
];
[ TimePasses;
    NoteObjectAcquisitions();
    if (score == MAX_SCORE) deadflag = 2;
    DrawStatusLine();
];
[ DrawStatusLine; sline1 = score; sline2 = turns; ];
[ Initialise; location = {start}; notify_mode = {notify}; lookmode = 2; return 2; ];
Include "Grammar";
Extend 'unlock' first * noun -> UnlockAny;
"""

_TERSE_MESSAGES = """\
Object LibraryMessages
  with before [;
    Prompt: print "^>"; rtrue;
    Score: rfalse;
    Miscellany: if (lm_n == 3 or 5 or 8 or 26) rtrue; if (lm_n == 4) { print "won"; rtrue; } print "no^"; rtrue;
    Take: if (lm_n == 1) print "taken^"; else print "no^"; rtrue;
    Drop: if (lm_n == 4) print "dropped^"; else print "no^"; rtrue;
    SwitchOn: if (lm_n == 3) print "lit^"; else print "no^"; rtrue;
    SwitchOff: if (lm_n == 3) print "out^"; else print "no^"; rtrue;
    Close: if (lm_n == 3) print "closed^"; else print "no^"; rtrue;
    default: print "no^"; rtrue;
  ];
"""

_TERSE_COFFER = """with after [ i;
    Open: print "open"; objectloop (i in self) print " ", (name) i; new_line; rtrue; ],"""

_TERSE_ROUTINES = """\
[ ParserError error; error = error; print "no^"; rtrue; ];
[ Thing i j;
    print " ", (name) i;
    if (i has container) { if (i has open) print " open"; else print " closed"; }
    if (i has switchable && i has on) print " on";
    if (i has container && i has open) objectloop (j in i) Thing(j);
];
[ Exits i d to;
    print " go";
    objectloop (i in Compass) {
        d = i.door_dir;
        if (d == u_to or d_to or in_to or out_to || real_location.&d == 0) continue;
        print " ", (name) i;
        to = real_location.d;
        if (to ofclass Gate && to has locked && location ~= thedark) print " ", (string) to.hue;
    }
    new_line;
];
[ LookSub allow_abbrev any i;
    i = allow_abbrev;
    visibility_ceiling = location;
    NoteArrival();
    if (location == thedark) print "dark";
    else {
        print "at ", (name) location;
        objectloop (i in location) if (i ~= player && i hasnt scenery) {
            if (any == false) print " see";
            any = true;
            Thing(i);
        }
    }
    Exits();
    ScoreArrival();
];
[ InvSub i;
    print "have";
    if (child(player) == 0) print " nothing";
    objectloop (i in player) Thing(i);
    new_line;
];
"""

_PROSE_ROUTINES = """\
[ Exits i d to any;
    print "You can go";
    objectloop (i in Compass) {
        d = i.door_dir;
        if (d == u_to or d_to or in_to or out_to || real_location.&d == 0) continue;
        if (any) print ",";
        any = true;
        print " ", (name) i;
        to = real_location.d;
        if (to ofclass Gate && location ~= thedark) {
            print " (the ", (name) to;
            if (to has locked) print ", locked";
            print ")";
        }
    }
    ".";
];
[ LookRoutine; Exits(); ];
"""


def source(world: World, style: str, thing_points: int, room_points: int) -> str:
    """The game's source. style: of STYLES. Points for each treasure when first held, for each scored room when first seen."""
    terse = style == "terse"
    room = {name: f"r{i}" for i, name in enumerate(world.rooms)}
    chest = {name: f"c{i}" for i, name in enumerate(world.chests)}
    head = _HEAD.format(
        total=points(world, thing_points, room_points),
        thing_points=thing_points,
        room_points=room_points,
        replaced="Replace LookSub;\nReplace InvSub;" if terse else "",
        messages=_TERSE_MESSAGES if terse else "",
        unlocked="unlocked" if terse else "Unlocked; it swings open.",
        coffer=_TERSE_COFFER if terse else "",
    )
    lines = [head]
    for name in world.rooms:
        ways = [
            f"{way[0]}_to {_gate(world, name, other) or room[other]}"
            for way, other in sorted(world.exits(name).items())
        ]
        has = " ".join(["light" if name not in world.dark else "~light", *(["scored"] if name in world.scored else [])])
        shown = name if terse else name.capitalize()
        description = "" if terse else f', description "You are in the {name}."'
        lines.append(f'Room {room[name]} "{shown}" with {", ".join(ways)}{description}, has {has};')
    for (a, b), colour in world.doors.items():
        way = next(w for w, other in world.exits(a).items() if other == b)
        lines.append(
            f"Gate g_{colour} \"{colour} door\" with name '{colour}' 'door', side_a {room[a]}, side_b {room[b]}, way_a {way[0]}_to, "
            f'way_b {BACK[way][0]}_to, found_in {room[a]} {room[b]}, hue "{colour}", with_key k_{colour};'
        )
    for name, place in world.chests.items():
        lines.append(f"Coffer {chest[name]} \"{name}\" {room[place]} with name '{name}';")
    for i, (thing, place) in enumerate(world.places.items()):
        words = " ".join(f"'{word}'" for word in thing.split())
        ident = f"k_{thing.split()[0]}" if thing.endswith(" key") else f"t{i}"
        has = "switchable" if thing == LAMP else "scored" if thing in world.treasures else ""
        light = ", after [; SwitchOn: give self light; SwitchOff: give self ~light; ]" if thing == LAMP else ""
        lines.append(
            f'Object {ident} "{thing}" {chest.get(place) or room[place]} with name {words}{light}'
            + (f", has {has};" if has else ";")
        )
    lines.append(_TERSE_ROUTINES if terse else _PROSE_ROUTINES)
    lines.append(_TAIL.format(start=room[world.rooms[0]], notify=0 if terse else 1))
    return "\n".join(lines)


def points(world: World, thing_points: int, room_points: int) -> int:
    """The full score."""
    return len(world.treasures) * thing_points + len(world.scored) * room_points


def _gate(world: World, a: str, b: str) -> str | None:
    colour = world.door(a, b)
    return f"g_{colour}" if colour else None
