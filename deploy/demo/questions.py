"""The short questions that the demonstration asks, and the answers that are known for some.

Nothing is downloaded: every question is a template filled from the word lists below.
"""

CAPITALS = """
Afghanistan:Kabul Albania:Tirana Algeria:Algiers Angola:Luanda Argentina:Buenos_Aires
Armenia:Yerevan Australia:Canberra Austria:Vienna Azerbaijan:Baku Bangladesh:Dhaka Belarus:Minsk
Belgium:Brussels Bolivia:Sucre Brazil:Brasília Bulgaria:Sofia Cambodia:Phnom_Penh Canada:Ottawa
Chile:Santiago China:Beijing Colombia:Bogotá Croatia:Zagreb Cuba:Havana Cyprus:Nicosia
Denmark:Copenhagen Ecuador:Quito Egypt:Cairo Estonia:Tallinn Ethiopia:Addis_Ababa Finland:Helsinki
France:Paris Georgia:Tbilisi Germany:Berlin Ghana:Accra Greece:Athens Guatemala:Guatemala_City
Haiti:Port-au-Prince Honduras:Tegucigalpa Hungary:Budapest Iceland:Reykjavik India:New_Delhi
Indonesia:Jakarta Iran:Tehran Iraq:Baghdad Ireland:Dublin Israel:Jerusalem Italy:Rome
Jamaica:Kingston Japan:Tokyo Jordan:Amman Kenya:Nairobi Kuwait:Kuwait_City Laos:Vientiane
Latvia:Riga Lebanon:Beirut Libya:Tripoli Lithuania:Vilnius Malaysia:Kuala_Lumpur Mali:Bamako
Malta:Valletta Mexico:Mexico_City Mongolia:Ulaanbaatar Morocco:Rabat Nepal:Kathmandu
Netherlands:Amsterdam New_Zealand:Wellington Nicaragua:Managua Nigeria:Abuja Norway:Oslo
Oman:Muscat Pakistan:Islamabad Panama:Panama_City Paraguay:Asunción Peru:Lima Philippines:Manila
Poland:Warsaw Portugal:Lisbon Qatar:Doha Romania:Bucharest Russia:Moscow Rwanda:Kigali
Saudi_Arabia:Riyadh Senegal:Dakar Serbia:Belgrade Singapore:Singapore Slovakia:Bratislava
Slovenia:Ljubljana Somalia:Mogadishu South_Korea:Seoul Spain:Madrid Sudan:Khartoum
Sweden:Stockholm Switzerland:Bern Syria:Damascus Taiwan:Taipei Tanzania:Dodoma Thailand:Bangkok
Tunisia:Tunis Turkey:Ankara Uganda:Kampala Ukraine:Kyiv Uruguay:Montevideo Venezuela:Caracas
Vietnam:Hanoi Yemen:Sanaa Zambia:Lusaka Zimbabwe:Harare
"""

CONTINENTS = {
    "Africa": "Algeria Angola Egypt Ethiopia Ghana Kenya Libya Mali Morocco Nigeria Rwanda Senegal "
    "Somalia Sudan Tanzania Tunisia Uganda Zambia Zimbabwe",
    "Asia": "Afghanistan Bangladesh Cambodia China India Indonesia Iran Iraq Japan Jordan Laos "
    "Lebanon Malaysia Mongolia Nepal Pakistan Philippines Singapore Syria Thailand Vietnam Yemen",
    "Europe": "Austria Belgium Bulgaria Croatia Denmark Estonia Finland France Germany Greece "
    "Hungary Ireland Italy Latvia Lithuania Netherlands Norway Poland Portugal Romania Spain "
    "Sweden",
    "South America": "Argentina Bolivia Brazil Chile Colombia Ecuador Paraguay Peru Uruguay "
    "Venezuela",
    "North America": "Canada Mexico Cuba Jamaica Panama Honduras",
}

OPPOSITES = """
hot:cold big:small fast:slow happy:sad light:dark young:old up:down in:out left:right open:closed
hard:soft wet:dry full:empty high:low early:late rich:poor strong:weak clean:dirty loud:quiet
day:night black:white good:bad true:false win:lose love:hate begin:end push:pull thick:thin
wide:narrow near:far deep:shallow safe:dangerous brave:cowardly cheap:expensive easy:difficult
sweet:sour smooth:rough tall:short heavy:light asleep:awake alive:dead buy:sell give:take
come:go laugh:cry north:south east:west front:back top:bottom first:last same:different
"""

COLORS = """
banana:yellow strawberry:red lemon:yellow carrot:orange snow:white grass:green coal:black
tomato:red cucumber:green milk:white pumpkin:orange spinach:green cherry:red lime:green
broccoli:green sunflower:yellow raven:black emerald:green ruby:red sapphire:blue chocolate:brown
lavender:purple salt:white blood:red crow:black frog:green
"""

JOBS = """
baker doctor teacher pilot farmer carpenter plumber nurse lawyer chef librarian mechanic gardener
firefighter dentist painter tailor fisherman sailor astronaut butcher scientist photographer
journalist judge electrician musician actor architect engineer waiter barber shepherd miner
blacksmith potter translator secretary accountant banker coach surgeon veterinarian pharmacist
florist jeweler locksmith postman detective referee
"""

TOOLS = """
hammer saw knife spoon ladder broom bucket needle compass telescope microscope thermometer scissors
umbrella lantern pencil eraser ruler calculator camera stapler shovel rake wheelbarrow axe rope
anchor kettle oven refrigerator pillow blanket towel soap toothbrush comb mirror clock calendar map
key lock bell candle basket wallet backpack helmet whistle magnet battery lamp drill wrench
screwdriver paintbrush sponge iron vacuum plow tractor
"""

THINGS = """
volcano river desert island forest glacier planet star comet tornado rainbow earthquake dolphin
elephant penguin owl spider butterfly whale tiger kangaroo giraffe turtle shark eagle bee ant horse
camel wolf bicycle train airplane submarine helicopter castle bridge lighthouse pyramid museum
library hospital school market garden poem novel song painting sculpture heart lung bone muscle
brain cell atom molecule vaccine virus piano violin guitar drum flute trumpet
"""

HABITS = """
sleep eat exercise laugh travel read_books drink_water wear_shoes keep_pets plant_trees
learn_languages wash_their_hands save_money cook_food listen_to_music brush_their_teeth play_games
go_to_school wear_hats build_houses write_letters take_photos celebrate_birthdays visit_museums
work_in_teams say_thank_you tell_stories swim dance smile sing
"""

PLACES = """
kitchen bathroom bedroom garage library hospital classroom park beach farm zoo airport restaurant
supermarket office forest desert museum theater castle harbor church stadium bakery bank
"""

MATERIALS = """
bread cheese soup salad glass paper chocolate honey steel concrete leather soap pasta butter yogurt
ice_cream pizza wool cotton silk plastic rubber wine jam
"""

REQUESTS = ("Tell me one fact about the", "Describe in one sentence the")


def pairs(table: str) -> dict[str, str]:
    """`left:right` words of a table, underscores read as spaces."""
    return dict(words(entry).split(":") for entry in table.split())


def words(entry: str) -> str:
    return entry.replace("_", " ")


def article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def facts() -> dict[str, str]:
    """Question → a word that a right answer contains."""
    known = {f"What is the capital of {c}?": city for c, city in pairs(CAPITALS).items()}
    for continent, countries in CONTINENTS.items():
        known |= {f"On which continent is {c}?": continent for c in countries.split()}
    known |= {f"What is the opposite of {a}?": b for a, b in pairs(OPPOSITES).items()}
    known |= {f"What color is {thing}?": color for thing, color in pairs(COLORS).items()}
    known |= {f"What is {a} plus {b}?": str(a + b) for a in range(2, 10) for b in range(1, a + 1)}
    return known


def open_questions() -> list[str]:
    """Questions that have no single right answer."""
    asked = [f"What does {article(job)} {job} do?" for job in JOBS.split()]
    asked += [f"Where does {article(job)} {job} work?" for job in JOBS.split()]
    asked += [f"What is {article(tool)} {tool} used for?" for tool in TOOLS.split()]
    asked += [f"What is {article(thing)} {thing}?" for thing in THINGS.split()]
    asked += [f"{request} {thing}." for request in REQUESTS for thing in THINGS.split()]
    asked += [f"What does {article(tool)} {tool} look like?" for tool in TOOLS.split()]
    asked += [f"Where can you find {article(thing)} {thing}?" for thing in THINGS.split()]
    asked += [f"What is {words(material)} made of?" for material in MATERIALS.split()]
    asked += [f"Why do people {words(habit)}?" for habit in HABITS.split()]
    asked += [f"Name one thing found in a {place}." for place in PLACES.split()]
    asked += [f"Why would someone visit a {place}?" for place in PLACES.split()]
    return asked
