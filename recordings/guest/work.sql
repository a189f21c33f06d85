create table people(id integer primary key, name text, town integer);
create table towns(id integer primary key, name text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000)
  insert into people select i, printf('person %d', i * 7919 % 10007), i * 31 % 97 from n;
with recursive n(i) as (select 0 union all select i + 1 from n where i < 96)
  insert into towns select i, printf('town %d', i) from n;
create index by_name on people(name);
create index by_town on people(town);
select towns.name, count(*) from people join towns on people.town = towns.id
  group by towns.id order by count(*) desc, towns.name limit 5;
