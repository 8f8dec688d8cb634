package zone

// Counts is how much a zone is made of, and how much of it is no answer.
type Counts struct {
	Endpoints, LeftOut, Services, Names int
}

// Counts counts what is of the zone's tenant.
func (z *Zone) Counts() Counts {
	var c Counts
	st := &z.state
	for _, e := range st.Endpoints {
		if e.Tenant == st.Tenant {
			c.Endpoints++
			if st.out(e) {
				c.LeftOut++
			}
		}
	}
	for _, s := range st.Services {
		if s.Tenant == st.Tenant {
			c.Services++
		}
	}
	for _, n := range st.Names {
		if n.Tenant == st.Tenant {
			c.Names++
		}
	}
	return c
}

// Behind counts the endpoints of a service of the zone's tenant: those that
// are answers, with those that it lists, and those that are left out.
func (z *Zone) Behind(network, name string) (endpoints, leftOut int) {
	sv, ok := get(z, z.services, []byte(network))
	if !ok {
		return 0, 0
	}
	v, ok := get(z, sv.names, []byte(name))
	if !ok {
		return 0, 0
	}
	endpoints = (&explainer{z: z}).usable(v)
	return endpoints, len(v.members) + len(v.of.Endpoints) - endpoints
}
