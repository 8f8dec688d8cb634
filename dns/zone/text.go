package zone

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// typeNames are those that a zone has records of, and a few words more.
func typeNames() map[uint16]string {
	return map[uint16]string{typeA: "A", typeNS: "NS", typeCNAME: "CNAME", typeSOA: "SOA", typePTR: "PTR", typeHINFO: "HINFO", 15: "MX",
		typeTXT: "TXT", typeAAAA: "AAAA", typeSRV: "SRV", typeANY: "ANY"}
}

// typeText is how a type is written; one that is not known as RFC 3597,
// section 5, has it.
func typeText(t uint16) string {
	if name, ok := typeNames()[t]; ok {
		return name
	}
	return "TYPE" + strconv.Itoa(int(t))
}

// dataText is how the data of a record is written.
func dataText(t uint16, data []byte) string {
	switch {
	case t == typeA && len(data) == 4, t == typeAAAA && len(data) == 16:
		a, _ := netip.AddrFromSlice(data)
		return a.String()
	case t == typeNS, t == typeCNAME, t == typePTR:
		return Text(data)
	case t == typeSRV && len(data) > 6:
		return fmt.Sprintf("%d %d %d %s", binary.BigEndian.Uint16(data), binary.BigEndian.Uint16(data[2:]), binary.BigEndian.Uint16(data[4:]), Text(data[6:]))
	case t == typeSOA && len(data) > 20:
		return soaText(data)
	case t == typeTXT, t == typeHINFO:
		var words []string
		for len(data) > 0 && len(data) > int(data[0]) {
			words = append(words, strconv.Quote(string(data[1:1+data[0]])))
			data = data[1+data[0]:]
		}
		return strings.Join(words, " ")
	}
	return fmt.Sprintf("\\# %d %x", len(data), data)
}

func soaText(data []byte) string {
	names, numbers := data[:len(data)-20], data[len(data)-20:]
	end := 0
	for end < len(names) && names[end] != 0 {
		end += 1 + int(names[end])
	}
	end = min(end+1, len(names))
	words := []string{Text(names[:end]), Text(names[end:])}
	for i := 0; i < 20; i += 4 {
		words = append(words, strconv.FormatUint(uint64(binary.BigEndian.Uint32(numbers[i:])), 10))
	}
	return strings.Join(words, " ")
}
